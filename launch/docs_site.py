"""A hook of mkdocs that adds pages from outside docs/ to the site, and adapts links to them.

mkdocs.yml names this file. To build the site:

    .venv/bin/python -m pip install -e '.[docs]'
    .venv/bin/mkdocs build --strict

In the repository, pages link to files by their relative paths. On the site, such a link leads to
the page made from the file, or to a copy of it.
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
_LINK = re.compile(r"(\]\()([^)#\s]+)")  # without the section
_FIELD = re.compile(r" {4}config\.([\w.]+) = (.*)")
_HEAD = """# Config

A config file `configs/{dataset}_{method}.py` changes some of these fields. The command line can
change any of them, as in `--config.num_bits=16`. A run with a value out of range ends with a
one-line error before it begins. Section numbers are those of the paper. This page is made from
`configs/default.py`.

| field | default | meaning |
| --- | --- | --- |
"""


def config_page(source: str) -> str:
    """Returns a page with all fields of the config.

    Args:
      source: The text of configs/default.py.
    """
    # A value that the formatter put in brackets on lines of its own becomes one line again.
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


def site_path(source: str, target: str) -> str | None:
    """Returns the path on the site of a file that a page of the repository links to.

    Args:
      source: Path of the page below the repository's root.
      target: The link, relative to the page.

    Returns:
      A path below the site's root, or None if the link is not to a file of the repository.
    """
    path = os.path.normpath(PurePosixPath(source).parent / target)
    if ":" in target or not (ROOT / path).is_file():
        return None
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return "config.md" if path == CONFIG else PAGES.get(path, f"files/{path}")


def on_files(files: Any, config: Any) -> Any:
    """Adds pages of the repository's root, the config's page, and files that pages link to."""
    from mkdocs.structure.files import File

    made = {"config.md": config_page((ROOT / CONFIG).read_text())}
    made |= {page: (ROOT / path).read_text() for path, page in PAGES.items()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    sources = [*PAGES, *(f"docs/{x.name}" for x in (ROOT / "docs").glob("*.md"))]
    for source in sources:
        for _, target in _LINK.findall((ROOT / source).read_text()):
            linked = site_path(source, target)
            if linked and linked.startswith("files/") and not files.get_file_from_path(linked):
                path = ROOT / linked.removeprefix("files/")
                files.append(File.generated(config, linked, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces links to files of the repository by links to their copies on the site."""
    sources = {page: path for path, page in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def replaced(match: re.Match[str]) -> str:
        return match[1] + (site_path(source, match[2]) or match[2])

    return _LINK.sub(replaced, markdown)
