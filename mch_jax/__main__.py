"""Multiple Code Hashing for image retrieval: all commands.

mch COMMAND [--flag=value ...]
mch COMMAND --help
eval "$(mch --completion=bash)"  # completes commands, flags and configs with the tab key
"""

import ast
import difflib
import importlib
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import NoReturn

from mch_jax import command

COMMANDS = {
    "train": "mch_jax.main",
    "search": "mch_jax.search",
    "export": "mch_jax.export",
    "serve": "mch_jax.serve",
    "dedup": "mch_jax.dedup",
    "grid": "mch_jax.grid",
    "tables": "mch_jax.tables",
    "sweep": "mch_jax.sweep",
    "rivals": "mch_jax.rivals",
    "sql": "mch_jax.sql.__main__",
    "prepare": "mch_jax.prepare",
}


def overview() -> str:
    """Returns the help: all commands, each with the first line of its module's docstring.

    The modules are read, not imported, so that the help needs none of their packages.
    """
    lines = [(__doc__ or "").strip(), ""]
    for name, module in COMMANDS.items():
        spec = util.find_spec(module)
        assert spec is not None
        assert spec.origin
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<9}{text.splitlines()[0]}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int | None:
    """Runs the command that the first argument names, or prints the list of commands.

    `--completion=bash` in its place prints a script for bash.

    Raises:
      ValueError: There is no such command, or its input is wrong.
      OSError: A file of the command cannot be read or written.
    """
    if not arguments or arguments[0] in ("--help", "-help", "-h", "help"):
        print(overview())  # noqa: T201
        return 0
    if arguments[0] == "--completion=bash":
        from mch_jax import completion

        print(completion.bash(COMMANDS), end="")  # noqa: T201
        return 0
    name, *others = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        raise ValueError(f"{name!r} is not a command of mch; {hint}")
    return importlib.import_module(COMMANDS[name]).main(others)


def program() -> NoReturn:
    """Is the console command `mch`."""
    command.run(main)


if __name__ == "__main__":
    program()
