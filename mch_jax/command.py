"""What all commands share: flags, errors in one line, the log, and the cache of compiled programs.

A command is a module with two functions:

    def define_flags(values: flags.FlagValues) -> None:  # its flags, in the order of --help
    def main(arguments: Sequence[str]) -> int | None:  # begins with command.parse

and ends with `command.run(main)` where it is started as a program. The flags belong to one call of
`main`. All commands can therefore be imported into one process and called from Python, for example
`search.main(["--run=DIR", "--codes=query.npz"])`. A call from Python raises ValueError or OSError
for bad input; `run` prints one line instead and exits with status 2.
"""

import errno
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from mch_jax.files.text import printable

PACKAGE = Path(__file__).parent
_HELP = {"--help", "-help", "-h"}
_FREE_SPACE = "free some space and start again; files that were complete are kept"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check its permissions, or choose another place",
}


def parse(
    arguments: Sequence[str], define_flags: Callable[[flags.FlagValues], None], doc: str | None
) -> Any:
    """Returns the values of a command's flags; prints its help and exits where that is asked for.

    Args:
      arguments: Arguments of the command line, without the program's name.
      define_flags: Defines the command's flags in the object that it is given.
      doc: Docstring of the command's module, which its help begins with.

    Returns:
      An object with one attribute for each flag.

    Raises:
      ValueError: An argument is not a flag of the command or has a value that the flag cannot take,
        or the config file raises an error.
      OSError: The config file cannot be read.
    """
    values = flags.FlagValues()
    define_flags(values)
    if _HELP & set(arguments):
        show(help_text(doc, values))
        sys.exit(0)
    try:
        _, *positional = values(["mch_jax", *arguments])
    except OSError:
        raise
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown_flag(error.flagname, values)) from None
    except Exception as error:  # noqa: BLE001  a config file may raise anything
        raise ValueError(_message(error)) from error
    if positional:
        raise ValueError(f"argument {positional[0]!r} is not a flag; expected --name=value")
    return values


def define_backbone(values: flags.FlagValues) -> None:
    """Defines the flag that names the backbone of a run again, of the commands that need it."""
    flags.DEFINE_string(
        "backbone", None, "The run's backbone, if it is a Python function or a file that was "
        "moved.", flag_values=values,
    )  # fmt: skip


def require(options: Any, **expected: str) -> None:
    """Checks that flags were given.

    Args:
      options: Values of the flags, as `parse` returns them.
      **expected: For the name of each required flag, what its value should be.

    Raises:
      ValueError: A flag is missing or empty.
    """
    for name, text in expected.items():
        if not options[name].value:
            raise ValueError(f"--{name} is missing; expected {text}")


def run(
    main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Runs a command as a program and exits with its status.

    A wrong argument or input ends the program with one line on stderr and exit status 2.

    Args:
      main: Takes the arguments and returns the exit status; None means 0.
      arguments: Arguments of the command line. Defaults to those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments

    def guarded(_: list[str]) -> int | None:
        try:
            return main(arguments)
        except (ValueError, OSError) as error:
            fail(error)
        except MemoryError as error:
            fail(ValueError(f"out of memory ({error}); lower the sizes of the model or batches"))
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fail(error)
        except KeyboardInterrupt:
            print("interrupted; rerun the same command to resume", file=sys.stderr)  # noqa: T201
            return 130

    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(is_shown)
    handler.setFormatter(_Formatter())
    app.run(guarded, argv=sys.argv[:1])  # absl's own flags are not flags of the command
    raise AssertionError("app.run does not return")


def help_text(doc: str | None, values: flags.FlagValues) -> str:
    """Returns the help of a command: its description, examples, and flags with their defaults.

    Args:
      doc: Docstring of the command's module.
      values: Flags of the command, listed in the order of their definition.
    """
    lines = [(doc or "").strip(), ""]
    found = [values[name] for name in values]
    width = max((len(flag.name) for flag in found), default=0) + 6
    for flag in found:
        text = " ".join((flag.help or "").replace(".;", ";").split()).rstrip(".")
        if flag.default not in (None, False, [], ""):
            text += f" ({str(flag.default_as_str).strip(chr(39))})"
        lines += textwrap.wrap(
            text, 100, initial_indent=f"  --{flag.name}".ljust(width), subsequent_indent=" " * width
        )
    return "\n".join(lines)


def keep_compiled() -> None:
    """Makes JAX keep compiled programs on disk, so that the next process need not compile them."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:  # a choice of the user's is kept
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "mch_jax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def is_shown(record: Any) -> bool:
    """Returns True for a log record that is a warning or comes from any module of this package.

    Information from libraries is dropped: checkpoints alone write dozens of lines.
    """
    return record.levelno > 20 or Path(record.pathname).is_relative_to(PACKAGE)


def show(*lines: Any) -> None:
    """Prints lines on standard output, without characters that would control a terminal."""
    text = printable("\n".join(map(str, lines)), "\n")
    coding = sys.stdout.encoding or "utf-8"
    print(text.encode(coding, "backslashreplace").decode(coding), flush=True)  # noqa: T201


class _Formatter(logging.PythonFormatter):
    """The format of absl's log, without characters that would control a terminal."""

    def format(self, record: Any) -> str:
        return printable(super().format(record), "\n")


def fail(error: Exception) -> NoReturn:
    """Prints an error in one line and exits with status 2."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        file = f"{error.filename}: " if error.filename else ""
        text = f"{file}{error.strerror}; {_REMEDIES[error.errno]}"
    elif "No space left" in text:  # libraries wrap the error in one of their own
        text = f"{text[:300]}; {_FREE_SPACE}"
    elif "RESOURCE_EXHAUSTED" in text:
        text = f"out of memory on the device ({text[:200]}); lower the batch sizes"
    print(f"error: {printable(text)}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    """Returns an error that names an unknown flag and the one that was probably meant."""
    import difflib  # only a wrong argument needs it

    close = difflib.get_close_matches(name, values, n=1, cutoff=0.65)
    hint = f"did you mean --{close[0]}?" if close else "--help lists the flags of this command"
    return f"--{name} is not a flag of this command; {hint}"


def _message(error: Exception) -> str:
    """Returns the text of an error, in plain words where a config lacks a field.

    For a missing field, ml_collections gives only its name, in nested quotes, sometimes followed by
    the closest name.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    name = text.strip("'\"\\").partition("\\")[0]
    if text[:1] not in ("'", '"') or not name.isidentifier():
        return text
    closest = text.partition("Did you mean ")[2].partition(" instead")[0]
    hint = f"did you mean {closest}?" if closest else "configs/default.py has all fields"
    return f"the config has no field '{name}'; {hint}"
