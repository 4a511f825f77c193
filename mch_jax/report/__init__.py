"""The report of a run, and the paper's tables and figures of many runs.

page: the report, an HTML page.
figures: its figures.
model_card: a page of Markdown in the run's folder.
gallery: its gallery of queries with their nearest photos.
markup: pieces of HTML that they share.
run_files: what the report reads of a run.
plots: colours and style that all figures share.
paper_tables, paper_figures: the paper's tables and figures from the runs of a grid.
"""

from mch_jax.report.page import write

__all__ = ["write"]
