"""One run: base model, agent, codes, measures, report. The same command goes on where it stopped.

python -m mch_jax.main --config=configs/scenes_dch.py --workdir=runs/mine
python -m mch_jax.main --config=configs/coco_dch.py --config.num_bits=16 --config.seed=1
python -m mch_jax.main --config=configs/folder_dch.py --config.dataset.root=DIR
python -m mch_jax.main --config=configs/scenes_dch.py --workdir=runs/mine --stage=report
python -m mch_jax.main --verify=runs/mine

Fields of a config are in configs/default.py; any of them can be given, as --config.num_bits.
"""

import errno
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_FREE = "free some space and start again; what was complete is kept"
_REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EROFS: "choose a --workdir that can be written",
    errno.EACCES: "check its permissions, or choose another place",
}

STAGES = ("base", "agent", "encode", "evaluate", "report")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the config, as configs/coco_dch.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept; under runs/ by default.")
_STAGE = flags.DEFINE_enum("stage", "all", (*STAGES, "all"), "The one stage to run.")
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "How many processes train together.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer("process", 0, "Which one of them this is.", lower_bound=0)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_VERIFY = flags.DEFINE_string(
    "verify", None, "A finished run, whose measures are recomputed from its codes and compared."
)


def run_command(main: Callable[[list[str]], Any]) -> None:
    """Runs a command; a wrong argument or input ends it with one line and exit status 2."""

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(help_text(main.__module__))  # noqa: T201
            sys.exit(0)
        try:
            return flags.FLAGS(argv)
        except Exception as error:  # noqa: BLE001  a config file may raise anything
            return fail(with_field_named(error))

    def guarded(argv: list[str]) -> Any:
        try:
            if len(argv) > 1:
                raise ValueError(f"argument {argv[1]!r} is not a flag; expected --name=value")
            return main(argv)
        except (ValueError, OSError) as error:
            return fail(error)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return fail(error)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)  # noqa: T201
            return 130

    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_for_people)
    app.run(guarded, flags_parser=parse)


def help_text(module: str) -> str:
    """Returns what a command is for, with examples, and its flags in the order of their definition.

    Args:
      module: name of the command's module.
    """
    # Flags that the started program itself defines go by its path.
    name = sys.argv[0] if module == "__main__" else module
    lines = [(sys.modules[module].__doc__ or "").strip(), ""]
    found = flags.FLAGS.flags_by_module_dict().get(name, [])
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
    """Keeps compiled programs on disk: compiling is most of what a command's first second does."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:  # unless another was chosen
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "mch_jax" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _is_for_people(record: Any) -> bool:
    """Returns whether a log line is ours or a warning; checkpoints alone write dozens of lines."""
    return record.levelno > 20 or "mch_jax" in Path(record.pathname).parts[:-1]


def with_field_named(error: Exception) -> Exception:
    """Returns an error that says plainly which field a config lacks, any other one as it is.

    ml_collections gives the field's name in quoted quotes, maybe with the closest one, and no more.
    """
    text = " ".join(str(error).split())
    name = text.strip("'\"\\").partition("\\")[0]
    if text[:1] not in ("'", '"') or not name.isidentifier():
        return error
    closest = text.partition("Did you mean ")[2].partition(" instead")[0]
    hint = f"did you mean {closest}?" if closest else "configs/default.py has them all"
    return ValueError(f"the config has no field '{name}'; {hint}")


def fail(error: Exception) -> NoReturn:
    """Ends the program with an error's text in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}{error.strerror}; {_REMEDIES[error.errno]}"
    elif "No space left" in text:  # of a library that has its own errors
        text = f"{text[:300]}; {_FREE}"
    elif "RESOURCE_EXHAUSTED" in text:
        text = f"out of memory on the device ({text[:200]}); lower the batch sizes"
    # A file's content can be part of the text; control characters would rewrite the terminal.
    text = "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
    print(f"error: {text}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def run_stages(config: Any, workdir: Path, stage: str = "all") -> dict[str, Any] | None:
    """Runs one stage or all of them, each going on where it stopped.

    Args:
      config: of the run.
      workdir: where its files are.
      stage: one of STAGES, or all.

    Returns:
      What results.json holds, once there is one; None in all processes but the first.
    """
    from mch_jax import report
    from mch_jax.evaluation import evaluate
    from mch_jax.methods import METHODS
    from mch_jax.training import (
        cross_fit,
        encode,
        parallel,
        run,
        train_agent,
        train_base,
        validation,
    )

    validation.check(config)
    this = run.open_run(config, workdir)
    chosen = STAGES if stage == "all" else (stage,)
    logging.info("data set %s", {k: v for k, v in this.audit.items() if k != "per_class"})
    params: Any = None
    variables: dict[str, Any] = {}
    if {"base", "agent", "encode"} & set(chosen) and not (stage == "all" and encode.is_done(this)):
        params = train_base.train(this)
        if config.method in METHODS and {"agent", "encode"} & set(chosen):
            recipe = {"paper": train_agent, "cross_fit": cross_fit}[config.agent.recipe]
            variables = recipe.train(this, params)
    if not parallel.part():
        return None
    if params is not None and "encode" in chosen:
        encode.encode(this, encode.encoder(this, params, variables))
    results = evaluate.evaluate(this) if "evaluate" in chosen else None
    if "report" in chosen:
        report.write(workdir, this.dataset, this.audit)
    return results


def verify(workdir: Path) -> int:
    """Says whether a run's results follow from its codes; returns the exit status, 0 or 1."""
    from mch_jax.evaluation import evaluate, provenance

    lines = evaluate.verify(workdir)
    for line in lines:
        print(line)  # noqa: T201
    results = evaluate.read(workdir)
    total = provenance.count({k: v for k, v in results.items() if k != "provenance"})
    verdict = f"DIFFERS in {len(lines)} values" if lines else f"agrees in {total} values"
    print(f"{workdir / 'results.json'} {verdict} with the run's codes")  # noqa: T201
    return 1 if lines else 0


def main(_: list[str]) -> int:
    """Runs what the flags say."""
    from mch_jax.evaluation import evaluate
    from mch_jax.training import run, termination

    keep_compiled()
    if _VERIFY.value:
        return verify(Path(_VERIFY.value))

    config = _CONFIG.value
    if config is None:
        raise ValueError(
            "--config is missing; expected a file, such as --config=configs/scenes_dch.py"
        )
    termination.install()
    if _PROCESSES.value > 1 or _COORDINATOR.value:
        from mch_jax.training import parallel

        parallel.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    workdir = Path(_WORKDIR.value or run.default_workdir(config))
    results = run_stages(config, workdir, _STAGE.value)
    if results:
        print(evaluate.table(results))  # noqa: T201
    if _STAGE.value in ("all", "report") and _PROCESS.value == 0:
        print(f"report: {workdir / 'report' / 'index.html'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    run_command(main)
