"""Interrupts tiny runs at random moments, resumes them, and compares the results bit for bit.

python launch/faults.py --trials=100 --out=faults.json      # as root, since it mounts a tmpfs

A trial starts the main job, waits for a random moment of a random stage, and causes one of these
faults: SIGKILL, SIGTERM, SIGKILL while a checkpoint is written, SIGTERM soon followed by SIGKILL, a
full disk, a read-only disk. It then repairs the disk and runs the same command again. The runs are
DCH with the paper's agent, DCH with a cross-fitted agent, and ADSH, which has a training loop of
its own.

The interrupted run must end by itself, with one line and without a traceback, and must not lose a
complete file. The second command must end with the same codes, measures, encoder and log as a run
without a fault, and leave no temporary file.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("sigkill", "sigterm", "checkpoint", "both", "full", "readonly")
STAGES = ("open", "base", "agent", "encode", "evaluate", "report")
RUNS = {
    "dch": "tiny()",
    "cross_fit": 'tiny(base__label_weight=0.2, agent__recipe="cross_fit", agent__num_folds=2)',
    "adsh": 'tiny("adsh")',
}
GRACE = 30.0  # seconds between SIGTERM and SIGKILL on most preemptible machines
SIZE = 48  # MiB of the small disk

CONFIG = """
import sys
sys.path[:0] = {paths}
from tiny_run import tiny

def get_config():
    return {call}
"""


def start(config: Path, workdir: Path, log: Path) -> tuple[int, int]:
    """Forks a process that runs the main job; returns its id and a pipe with the stage names."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 1
    try:
        _announce(writer)
        from mch_jax import command, main

        command.run(main.main, [f"--config={config}", f"--workdir={workdir}"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  the trial reads the traceback in the log
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)


def _announce(writer: int) -> None:
    """Makes each stage write its name into a pipe when it begins."""
    from mch_jax import evaluation, report
    from mch_jax.training import base, cross_fit, encode, paper, run

    said = set()

    def wrap(module, name, stage):
        function = getattr(module, name)

        def announced(*args, **kwargs):
            if stage not in said:  # a cross-fitted agent trains base models, too
                said.add(stage)
                os.write(writer, f"{stage}\n".encode())
            return function(*args, **kwargs)

        setattr(module, name, announced)

    wrap(run, "open_run", "open")
    wrap(base, "train", "base")
    wrap(paper, "train", "agent")
    wrap(cross_fit, "train", "agent")
    wrap(encode, "encode", "encode")
    wrap(evaluation, "write_results", "evaluate")
    wrap(report, "write", "report")


def wait(pid: int, seconds: float) -> int | None:
    """Returns the exit status, or None if the process did not end in time and was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def follow(reader: int) -> list[tuple[str, float]]:
    """Waits for the end of a run; returns its stages and when each began."""
    begun = []
    with open(reader) as lines:
        for line in lines:
            begun.append((line.strip(), time.monotonic()))
    return [*begun, ("end", time.monotonic())]


def fill(directory: Path) -> Path:
    """Fills the disk of a directory; returns the file that takes the space."""
    path, size = directory / "filler", 2**22
    with open(path, "wb") as file:
        while size:
            try:
                end = file.seek(0, os.SEEK_END)
                os.posix_fallocate(file.fileno(), end, size)
            except OSError:
                size = size // 2 if size > 4096 else 0
    return path


def mount(*arguments: str) -> bool:
    """Runs `mount`; returns whether it succeeded."""
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def disk(directory: Path):
    """Yields a new small disk."""
    directory.mkdir()
    if not mount("-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(directory)):
        raise SystemExit("error: cannot mount a tmpfs; run this as root")
    try:
        yield directory
    finally:
        mount("-o", "remount,rw", str(directory))
        subprocess.run(["umount", "-l", str(directory)], check=False)
        directory.rmdir()


def ending(workdir: Path) -> dict:
    """Returns everything in which two finished runs are compared."""
    found: dict = {
        "results": json.loads((workdir / "results.json").read_text()),
        "metrics": (workdir / "metrics.jsonl").read_text().splitlines(),
        "report": (workdir / "report" / "index.html").exists(),
    }
    for path in [*sorted((workdir / "codes").glob("*.npz")), workdir / "encoder.npz"]:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                found[f"{path.name}/{name}"] = archive[name].tobytes()
    return found


def wait_for_checkpoint(workdir: Path, seconds: float = 60) -> str | None:
    """Waits until a checkpoint is being written; returns "none begun" if none is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (workdir / "encoder.npz").exists():
        if any(workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*")):
            time.sleep(random.uniform(0, 0.02))
            return None
        time.sleep(0.0005)
    return "none begun"


def disturb(kind: str, pid: int, workdir: Path) -> tuple[str | None, Path | None]:
    """Causes a fault; returns a problem in causing it, if any, and the file that fills the disk."""
    if kind in ("checkpoint", "both"):
        problem = wait_for_checkpoint(workdir) if kind == "checkpoint" else None
        with contextlib.suppress(ProcessLookupError):
            if kind == "both":
                os.kill(pid, signal.SIGTERM)
                time.sleep(random.uniform(0, 0.5))
            os.kill(pid, signal.SIGKILL)
        return problem, None
    if kind in ("sigkill", "sigterm"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kind == "sigkill" else signal.SIGTERM)
        return None, None
    if kind == "full":
        return None, fill(workdir.parent)
    end = time.monotonic() + 3
    while time.monotonic() < end:  # refused while a file is open for writing
        if mount("-o", "remount,ro", str(workdir.parent)):
            return None, None
        time.sleep(0.01)
    return "busy", None


def trial(kind: str, stage: str, fraction: float, spent: dict, reference: dict, config: Path):
    """Returns the outcome of one trial, with a list of what went wrong."""
    scratch = config.parent
    log = scratch / "log.txt"
    wrong = []
    with disk(scratch / "disk") as mounted:
        workdir = mounted / "run"
        pid, reader = start(config, workdir, log)
        with open(reader) as lines:
            for line in lines:
                if line.strip() == stage:
                    break
            time.sleep(fraction * spent[stage])
            problem, filler = disturb(kind, pid, workdir)
            since = time.monotonic()
            status = wait(pid, 180)
            seconds = time.monotonic() - since
        text = log.read_text(errors="replace")
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        killed = (-9, 0)
        expected = {
            "sigkill": killed, "sigterm": (143, 0), "checkpoint": killed, "both": (143, *killed)
        }.get(kind, (2, 0))  # fmt: skip
        if status not in expected:
            wrong.append(f"status {status}")
        if "Traceback" in text:
            wrong.append("traceback: " + text[text.index("Traceback") :][-600:])
        if status == 2 and len(errors) != 1:
            wrong.append(f"{len(errors)} error lines")
        if kind == "sigterm" and seconds > GRACE:
            wrong.append(f"{seconds:.0f} s after SIGTERM")

        if filler:
            filler.unlink()
        mount("-o", "remount,rw", str(mounted))
        pid, reader = start(config, workdir, log)
        again = wait(pid, 300)
        os.close(reader)
        text = log.read_text(errors="replace")
        if again != 0:
            wrong.append(f"second start: status {again}: {text[-600:]}")
        else:
            after = ending(workdir)
            wrong += [f"{k} differs" for k in reference if after.get(k) != reference[k]]
        wrong += [f"second start: {w}" for w in ("is damaged", "cannot be read") if w in text]
        left = [x.name for x in workdir.rglob("*") if x.name[0] == "." or "-tmp" in x.name]
        wrong += [f"left behind: {name}" for name in left]
    return {
        "run": config.stem,
        "kind": kind,
        "stage": stage,
        "status": status,
        "seconds": round(seconds, 2),
        "line": errors[0] if errors else "",
        "problem": problem,
        "left": left,
        "wrong": wrong,
    }


def measure(config: Path) -> tuple[dict[str, float], dict]:
    """Returns the seconds that each stage of a run without a fault takes, and its results."""
    begun, reference = [], {}
    for _ in range(2):  # the first run fills the compilation cache
        with disk(config.parent / "disk") as mounted:
            pid, reader = start(config, mounted / "run", config.parent / "log.txt")
            begun = follow(reader)
            if wait(pid, 600) != 0:
                raise SystemExit((config.parent / "log.txt").read_text())
            reference = ending(mounted / "run")
    spent = {stage: end - t for (stage, t), (_, end) in zip(begun, begun[1:], strict=False)}
    return spent, reference


def main() -> int:
    """Runs the trials and prints a table; returns 1 if anything went wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds, stages = options.kinds.split(","), options.stages.split(",")

    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "mch_jax" / "faults")
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    # Imported once, before forking; importing starts neither a device nor a thread.
    import orbax.checkpoint  # noqa: F401

    from mch_jax import main as _  # noqa: F401
    from mch_jax import report  # noqa: F401

    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        paths, undisturbed = [str(ROOT), str(ROOT / "tests")], {}
        for name in options.runs.split(","):
            config = scratch / f"{name}.py"
            config.write_text(CONFIG.format(paths=paths, call=RUNS[name]))
            undisturbed[config] = measure(config)
            spent = {k: round(v, 2) for k, v in undisturbed[config][0].items()}
            print(f"{name}, seconds of each stage: {spent}", flush=True)

        outcomes = []
        for number in range(options.trials):
            kind, stage = kinds[number % len(kinds)], rng.choice(stages)
            config = rng.choice(list(undisturbed))
            spent, reference = undisturbed[config]
            outcome = trial(kind, stage, rng.random(), spent, reference, config)
            outcomes.append(outcome)
            print(number + 1, json.dumps(outcome), flush=True)
            if options.out:
                options.out.write_text(json.dumps(outcomes, indent=1))

    print(f"\n{'':10}" + "".join(f"{stage:>10}" for stage in stages))
    for kind in kinds:
        counts = Counter(x["stage"] for x in outcomes if x["kind"] == kind)
        print(f"{kind:10}" + "".join(f"{counts[stage]:>10}" for stage in stages))
    hit = sum(x["status"] != 0 for x in outcomes)
    slowest = max((x["seconds"] for x in outcomes if x["kind"] == "sigterm"), default=0)
    bad = sum(bool(x["wrong"]) for x in outcomes)
    print(
        f"{len(outcomes)} trials, {hit} of them stopped the run, SIGTERM took at most "
        f"{slowest} s; {bad} went wrong"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
