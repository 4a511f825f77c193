"""Stage 5: the report, a page that shows a finished run with its figures beside it.

The page needs no network and no script. Every figure is drawn twice, for a light and a dark screen.
"""

import html
import importlib.resources
import json
import shutil
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mch_jax.data import Dataset
from mch_jax.evaluation.measures import (
    MEASURE,
    ORACLES,
    Measure,
    chosen,
    gain,
    measured,
    notes,
    terms,
)
from mch_jax.report import figures, model_card, plots, run_files
from mch_jax.report.gallery import NUM_NEAREST, NUM_QUERIES, Gallery, pick_answers
from mch_jax.report.markup import data, figure, plain_table, section, show, words
from mch_jax.report.plots import Plot
from mch_jax.report.run_files import RunFiles

HEADLINES = ("map", "p_at_h0", "r_at_h0")  # the measures of the first sentence
TILES = (*HEADLINES, "anhc")
_MAX_DAMAGED = 20  # damaged photos that are listed by name

_TERMS = (
    ("Reward", "How much the loss on pairs with the training photos falls if a region’s code is "
     "kept beside that of the whole photo. A region with a positive reward is worth keeping."),
    ("Keep probability", "The agent’s probability of keeping a region’s code. The agent does not "
     "see the photo’s labels."),
)  # fmt: skip
_RULES = (
    "Two photos are relevant to each other if they share at least one label.",
    "A photo with several codes counts once, at the nearest of them.",
    "Photos at equal distance are tied. Measures average over all their orders; lists and the "
    "gallery show them in database order.",
    "An empty ball, where no photo lies within the radius, has precision 0 and recall 0, and it "
    "counts in the means.",
    "A query without any relevant photo is left out of every mean and of the gallery.",
    "Recall divides by all relevant photos of the database.",
    "Measures are fractions between 0 and 1, not per cent.",
)


def verdict(results: Mapping[str, Any]) -> str:
    """Returns a sentence that says which headline measures several codes raise or lower."""
    base, mch = results["base"], results["mch"]
    if base == mch:
        reason = "The agent kept no region" if "controls" in results else "This method has no agent"
        return f"{reason}: every photo has one code, and MCH equals the base."
    risen, fallen, same = [], [], []
    for measure in (MEASURE[key] for key in HEADLINES):
        before, after = (show(row[measure.key], measure.digits) for row in (base, mch))
        if before == after:
            same.append(f"{measure.title} at {after}")
        else:
            change = f"{measure.title} from {before} to {after}"
            (risen if mch[measure.key] > base[measure.key] else fallen).append(change)
    parts = [("raises", risen), ("lowers", fallen), ("leaves", same)]
    parts = [f"{verb} {words(changes)}" for verb, changes in parts if changes]
    clauses = ", but ".join(parts) if risen and fallen and not same else words(parts)
    return f"With {mch['anhc']:.2f} codes per photo instead of one, MCH {clauses}."


def _header(results: Mapping[str, Any]) -> str:
    counts = results["dataset"]
    classes = counts["classes"]
    facts = {
        "Data set": html.escape(str(counts["name"])),
        "Base model": html.escape(results["method"].upper()),
        "Code length": f"{results['num_bits']} bits",
        "Seed": results["seed"],
        "Queries": f"{counts['queries']:,}",
        "Database": f"{counts['database']:,} photos",
        "of these for training": f"{counts['train']:,}",
        "Classes": classes if isinstance(classes, int) else len(classes),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        '<header><p class="over">Multiple Code Hashing</p>'
        f"<h1>{html.escape(_title(results))}</h1>"
        f'<p class="lead">{verdict(results)}</p><dl class="facts">{items}</dl></header>'
    )


def _title(results: Mapping[str, Any]) -> str:
    name, method = results["dataset"]["name"], results["method"].upper()
    return f"{name}, {method} at {results['num_bits']} bits"


def _change(measure: Measure, before: float, after: float) -> str:
    """Returns a mark for the direction of a change; nothing for a cost or equal shown digits."""
    if measure.is_cost or show(before, measure.digits) == show(after, measure.digits):
        return ""
    kind, mark, word = ("better", "▲", "higher") if after > before else ("worse", "▼", "lower")
    return f'<span class="mark {kind}" role="img" aria-label="{word}">{mark}</span>'


def _tiles(results: Mapping[str, Any]) -> str:
    base, mch, tiles = results["base"], results["mch"], []
    for measure in (MEASURE[key] for key in TILES):
        key, digits = measure.key, measure.digits
        was = f"base {show(base[key], digits)}"
        was += f", chance {show(results['chance_map'], digits)}" if key == "map" else ""
        tiles.append(
            f'<div class="tile"><dl><dt>{measure.title} with MCH</dt><dd><span class="now">'
            f"{_change(measure, base[key], mch[key])}{show(mch[key], digits)}</span>"
            f'<div class="was">{was}</div></dd></dl></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _cells(results: Mapping[str, Any], key: str, row: Mapping[str, Any]) -> str:
    """Returns the measures of a choice of codes, those of MCH marked against the base."""
    cells = []
    for measure in measured(results):
        before, after = results["base"][measure.key], row[measure.key]
        mark = _change(measure, before, after) if key == "mch" else ""
        cells.append(f"<td>{mark}{data(after, measure.digits)}</td>")
        if measure.key == "map":
            cells.append(f"<td>{after - results['chance_map']:+.3f}</td>")
    return "".join(cells)


def _results(results: Mapping[str, Any]) -> str:
    heads = [measure.title for measure in measured(results)]
    heads.insert(1, "over chance")
    empty = '<td class="none" aria-label="none">–</td>'
    chance = f"<td>{data(results['chance_map'], 3)}</td>" + empty * (len(heads) - 1)
    rows = [("Chance<small>a random ranking</small>", chance, "control")]
    for choice, row in chosen(results):
        kind = "control" if choice.is_control else "mch" if choice.key == "mch" else ""
        title = f"{choice.title}<small>{choice.note}</small>"
        rows.append((title, _cells(results, choice.key, row), kind))
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{title}</th>{cells}</tr>'
        for title, cells, kind in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Codes", *heads))
    note = "▲ and ▼ mark what MCH raises or lowers compared with the base."
    note += "".join(f" {sentence}" for sentence in gain(results, 3))
    if "controls" in results:
        note += (
            " The last rows are controls that choose from the same codes without the agent. They "
            "show what its choice is worth."
        )
    shares = [
        f"{share:.0%} of that of {ORACLES[oracle]}"
        for oracle, share in results.get("oracle_share", {}).items()
        if share is not None
    ]
    if shares:
        note += f" The agent’s gain in mAP over the base is {words(shares)}."
    if "calibration" in results:
        note += _calibrated(results["calibration"])
    note += "".join(f" {sentence}" for sentence in notes(results))
    return (
        f"<section><h2>Results</h2>{_tiles(results)}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="note">{note} Every measure is explained <a href="#terms">below</a>.</p>'
        "</section>"
    )


def _calibrated(record: Mapping[str, Any]) -> str:
    """Returns a sentence on the calibrated keep threshold and its estimated gain."""
    value, photos = record["keep_threshold"], f"{record['photos']:,} training photos left out"
    if value > 1:
        return f" On {photos}, no threshold gains for certain, so that the agent keeps no region."
    row = next(row for row in record["gains"] if row["keep_threshold"] == value)
    return (
        f" The keep threshold {value:g} was chosen on {photos}, where MCH gains {row['map']:+.4f} "
        f"in mAP (at least {row['map_lower']:+.4f}) and {row['p_at_h0']:+.4f} in P@H=0."
    )


def _decisions(files: RunFiles) -> list[Plot]:
    if not files.has_agent:
        return []
    keep_prob, reward = (files.regions[name][:, 1:].ravel() for name in ("keep_prob", "reward"))
    return [
        figures.rewards(reward),
        figures.keep_probabilities(keep_prob, reward, files.keep_threshold),
        figures.codes_per_photo(files.database),
    ]


def _drawn(folder: Path, found: Iterable[Plot]) -> list[str]:
    """Draws figures into the report's folder and returns their HTML."""
    parts = []
    for plot in found:
        plots.save(plot, folder)
        parts.append(figure(plot))
    return parts


def _gallery(folder: Path, dataset: Dataset, files: RunFiles) -> str:
    answers = pick_answers(files)
    gallery = Gallery(folder, dataset, files)
    text = "The queries shown are spread evenly over all queries. "
    if files.has_several_codes:
        num_most = min(NUM_QUERIES // 2, len(answers))
        text = (
            f"The first {num_most} queries are those for which MCH finds most additional relevant "
            f"photos among the first {NUM_NEAREST}; the others are spread evenly over the "
            "remaining queries. A yellow box marks the region whose code is nearest to that of the "
            "query; without a box it is the whole photo. "
        )
    text += (
        "Below each photo are ✓ for relevant or ✕ for irrelevant, its distance, and its labels, "
        "with those of the query in bold."
    )
    return section("Gallery", text, [gallery.card(answer) for answer in answers], "gallery")


def _audit(audit: Mapping[str, Any]) -> str:
    counts = {
        "Photos": f"{audit['n']:,}",
        "Queries, none of them in the database": f"{audit['queries']:,}",
        "Database": f"{audit['database']:,}",
        "Training, all of it in the database": f"{audit['train']:,}",
        "Photos without a label": f"{audit['unlabelled']:,}",
        "Labels per photo": f"{audit['labels_per_photo']:.2f}",
        "Queries without a relevant photo": f"{audit['queries_without_relevant']:,}",
        "Share of the database relevant to a query": f"{audit['relevant_share']:.3f}",
        "Damaged photos left out": f"{len(audit['damaged']):,}",
    }
    rows = [(name, f"<td>{value}</td>") for name, value in counts.items()]
    most = max(audit["per_class"].values(), default=1) or 1
    bar = '<td class="bar"><span style="width:{:.1%}"></span></td><td>{:,}</td>'
    classes = [
        (html.escape(name), bar.format(n / most, n)) for name, n in audit["per_class"].items()
    ]
    listed = audit["reasons"][:_MAX_DAMAGED]
    damaged = "".join(f"<li>{html.escape(reason)}</li>" for reason in listed)
    if damaged:
        more = len(audit["reasons"]) - _MAX_DAMAGED
        damaged += f"<li>and {more:,} more</li>" if more > 0 else ""
        damaged = (
            f'<details><summary>Damaged photos</summary><ul class="rules">{damaged}</ul></details>'
        )
    rules = "".join(f"<li>{rule}</li>" for rule in _RULES)
    return (
        "<section><h2>The data set</h2><p>Before the run every photo was decoded and every list "
        'checked.</p><div class="split">'
        f"<div><h3>Counts</h3>{plain_table(rows)}{damaged}</div>"
        f"<div><h3>Photos by class</h3>{plain_table(classes)}</div></div></section>"
        f'<section><h2>The rules</h2><ul class="rules">{rules}</ul></section>'
    )


def _fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each field of a config."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _terms(files: RunFiles) -> str:
    found = [(term.title, term.meaning) for term in terms(files.results)]
    items = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in (*found, *_TERMS))
    rows = [
        (html.escape(name), f"<td>{html.escape(json.dumps(value))}</td>")
        for name, value in _fields(files.config)
    ]
    settings = plain_table(rows)
    return (
        f'<section id="terms"><h2>The measures</h2><dl class="terms">{items}</dl>'
        f"<details><summary>Every setting of the run</summary>{settings}</details></section>"
    )


def _equal_cost(folder: Path, results: Mapping[str, Any]) -> list[str]:
    """Returns the section on searches of equal cost; none for results of an earlier version."""
    plots = figures.f1_at_equal_cost(results)
    if not plots:
        return []
    text = (
        "The base model can look into buckets in a better order too, by the query’s real values. "
        "This is the fair comparison: at the same number of buckets, of codes read, or of bytes."
    )
    return [section("At equal cost", text, _drawn(folder, plots))]


def _page(folder: Path, dataset: Dataset, audit: Mapping[str, Any], files: RunFiles) -> str:
    """Writes the figures and thumbnails into a folder and returns the page."""
    main = (
        _results(files.results),
        section(
            "Search",
            "A hash table answers a query by looking into buckets, those of the nearest codes "
            "first. The number of buckets is the cost of a search, F1 is its quality.",
            _drawn(folder, figures.f1_by_cost(files.results)),
        ),
        *_equal_cost(folder, files.results),
        _gallery(folder, dataset, files),
        section(
            "What the agent decided",
            "Each photo has five regions beside the whole: its four corners and its middle. The "
            "agent keeps a region’s code if its keep probability reaches the threshold. Equal "
            "codes of a photo are stored once.",
            _drawn(folder, _decisions(files)),
        ),
        section(
            "Training",
            "As logged during the run.",
            _drawn(folder, figures.training(files.metrics)),
        ),
        _audit(audit),
        _terms(files),
    )
    body = (
        f"{_header(files.results)}<main>{''.join(main)}</main>"
        "<footer>Written by mch_jax. This page needs no network.</footer>"
    )
    template = (importlib.resources.files("mch_jax.report") / "report.html").read_text("utf-8")
    title = html.escape(_title(files.results))
    return string.Template(template).substitute(title=title, body=body)


def write(workdir: Path, dataset: Dataset, audit: Mapping[str, Any]) -> Path:
    """Writes the report and the model card of a finished run, each completely or not at all.

    Args:
      workdir: Directory of the run, with results.json and the codes files.
      dataset: Data set of the run, whose photos the gallery shows.
      audit: What `data.audit` counted.

    Returns:
      The path of the page, report/index.html in the workdir.

    Raises:
      ValueError: A stage that the report shows has not run yet, or a photo of the gallery no longer
        decodes.
    """
    workdir = Path(workdir)
    files = run_files.read(workdir)
    report, new, old = (workdir / name for name in ("report", ".report-new", ".report-old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        (new / "index.html").write_text(_page(new, dataset, audit, files), "utf-8")
        if report.exists():
            report.rename(old)
        new.rename(report)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    model_card.write(workdir, dataset, files, verdict(files.results))
    return report / "index.html"
