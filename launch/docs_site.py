"""What the documentation site holds beside docs/: pages of the root, the config's fields, links.

A hook of mkdocs (mkdocs.yml names it):

    .venv/bin/python -m pip install -e '.[docs]'
    .venv/bin/mkdocs build --strict

Pages link to files of the repository as they lie in it, so that they work there too. Here those
links are led to the page that the file became, or to a copy of it.
"""

import ast
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "RESULTS.md": "results.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bench/results/index.md": "bench.md",
}
CONFIG = "configs/default.py"
_LINK = re.compile(r"(\]\()([^)#\s]+)")  # a section after it stays
_FIELD = re.compile(r" {4}config\.([\w.]+) = (.*)")
_HEAD = """# Config

A config file `configs/{data set}_{method}.py` changes some of these fields; the command line any
of them, as in `--config.num_bits=16`. Section numbers are those of the paper. A value out of range
ends the run before it begins, with one line. Made from `configs/default.py`.

| field | by default | what |
| --- | --- | --- |
"""


def config_page(source: str) -> str:
    """Returns the page of the config's fields.

    Args:
      source: of configs/default.py.
    """
    # A value in brackets on lines of its own becomes one line, its comment behind it.
    source = re.sub(r"\(\n\s+(\S+)(  # [^\n]*)\n\s+\)", r"\1\2", source)
    rows = []
    for line in source.splitlines():
        match = _FIELD.fullmatch(line)
        if match is None:
            continue
        value, _, comment = match[2].partition("  # ")
        if value == "ConfigDict()":
            if not comment:
                continue  # a section
            value = ""
        else:
            value = f"`{ast.literal_eval(value)!r}`"
        rows.append(f"| `{match[1]}` | {value} | {comment.replace('|', '/')} |\n")
    return _HEAD + "".join(rows)


def place(source: str, target: str) -> str | None:
    """Returns what a link to a file of the repository becomes on the site.

    Args:
      source: the page that links, below the root.
      target: the link, relative to the page.

    Returns:
      The place below the site's root; None where the link is to something else.
    """
    path = os.path.normpath(PurePosixPath(source).parent / target)
    if ":" in target or not (ROOT / path).is_file():
        return None
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return "config.md" if path == CONFIG else PAGES.get(path, f"files/{path}")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the root, the config's fields, and the files that pages link to."""
    from mkdocs.structure.files import File

    made = {"config.md": config_page((ROOT / CONFIG).read_text())}
    made |= {page: (ROOT / path).read_text() for path, page in PAGES.items()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    sources = [*PAGES, *(f"docs/{x.name}" for x in (ROOT / "docs").glob("*.md"))]
    for source in sources:
        for _, target in _LINK.findall((ROOT / source).read_text()):
            linked = place(source, target)
            if linked and linked.startswith("files/") and not files.get_file_from_path(linked):
                path = ROOT / linked.removeprefix("files/")
                files.append(File.generated(config, linked, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links to files of the repository to their places on the site."""
    sources = {page: path for path, page in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def led(match: re.Match[str]) -> str:
        return match[1] + (place(source, match[2]) or match[2])

    return _LINK.sub(led, markdown)
