"""Writes docs/config.md: every field of configs/default.py, its value and its comment.

python launch/config_table.py
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
HEAD = """# Config

A config file `configs/{data set}_{method}.py` changes some of these fields; the command line any of
them, as in `--config.num_bits=16`. Section numbers are those of the paper. A value out of range ends
the run before it begins, with one line. Made by `launch/config_table.py` from `configs/default.py`.

| field | by default | what |
| --- | --- | --- |
"""


def table() -> str:
    """Returns the page."""
    rows = []
    for line in (ROOT / "configs" / "default.py").read_text().splitlines():
        match = re.fullmatch(r"\s+config\.([\w.]+) = (.+?)(?:  # (.*))?", line)
        if match is None or match[2].startswith("ConfigDict") and not match[3]:
            continue
        name, value, comment = match.groups()
        value = "" if value.startswith("ConfigDict") else repr(ast.literal_eval(value))
        comment = (comment or "").replace("|", "/")
        rows.append(f"| `{name}` | {f'`{value}`' if value else ''} | {comment} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(table())
