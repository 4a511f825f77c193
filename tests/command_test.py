"""The commands: each has its own flags, all fit into one process, and errors are one line."""

import importlib
import logging
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from mch_jax import command, main
from mch_jax.data import fetch

NAMES = (
    "main", "search", "export", "serve", "grid", "sweep", "tables", "rivals", "prepare", "dedup",
    "sql.__main__", "cluster.__main__",
)  # fmt: skip
PACKAGE = pathlib.Path(command.__file__).parent
# ml_collections loads config files by a method that Python is about to remove.
loads_config = pytest.mark.filterwarnings("ignore:the load_module")


def module_of(name):
    return importlib.import_module(f"mch_jax.{name}")


def run_script(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )


def define_number(values):
    flags.DEFINE_integer("number", 10, "A number.", lower_bound=1, flag_values=values)


def test_every_command_is_tested():
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path not in (PACKAGE / "command.py", PACKAGE / "__main__.py")
        and "command.run(main)" in path.read_text()
    }
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_flags_of_the_command_and_no_others(name, capsys):
    module, values = module_of(name), flags.FlagValues()
    module.define_flags(values)
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(module.__doc__.strip().splitlines()[0])
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert shown == [f"--{flag}" for flag in values]


@pytest.mark.parametrize("name", NAMES)
def test_flags_of_other_commands_are_refused_by_name(name):
    module, values = module_of(name), flags.FlagValues()
    module.define_flags(values)
    for other in {"stage", "ratios", "max_upload", "verbosity"} - set(values):
        with pytest.raises(ValueError, match=f"^--{other} is not a flag of this command; "):
            module.main([f"--{other}=1"])


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_is_not_a_flag_is_refused(name):
    with pytest.raises(ValueError, match="argument 'cat.jpg' is not a flag; expected --name=value"):
        module_of(name).main(["cat.jpg"])


@pytest.mark.parametrize(
    ("name", "flag"),
    [(name, "run") for name in ("search", "export", "serve", "sweep", "rivals")]
    + [
        ("main", "config"),
        ("dedup", "images"),
        ("grid", "dataset"),
        ("prepare", "dataset"),
        ("tables", "root"),
    ]
    + [("sql.__main__", "codes"), ("cluster.__main__", "index")],
)
def test_a_missing_flag_is_named(name, flag):
    with pytest.raises(ValueError, match=f"^--{flag} is missing; expected "):
        module_of(name).main([])


def test_all_commands_run_as_programs_in_one_process():
    """One line on stderr and exit status 2, in one process that imports every command."""
    script = (
        "import importlib, sys\n"
        "from mch_jax import command\n"
        "modules = [importlib.import_module(f'mch_jax.{name}') for name in sys.argv[1:]]\n"
        "for module in modules:\n"
        "    try:\n"
        "        command.run(module.main, ['--other=1'])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 2, stop.code\n"
    )
    result = run_script(script, *NAMES)
    assert result.returncode == 0, result.stderr
    line = "error: --other is not a flag of this command; --help lists the flags of this command"
    assert result.stderr.splitlines() == [line] * len(NAMES)
    assert result.stdout == ""


def test_a_mistyped_flag_gets_the_closest_one():
    with pytest.raises(ValueError, match="--numbr is not a flag .*; did you mean --number"):
        command.parse(["--numbr=2"], define_number, None)


def test_flags_belong_to_one_call():
    assert command.parse(["--number=3"], define_number, None).number == 3
    assert command.parse([], define_number, None).number == 10


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_value_that_the_flag_cannot_take_is_refused(value):
    with pytest.raises(ValueError, match=f"flag --number={value}: "):
        command.parse([f"--number={value}"], define_number, None)


@loads_config
def test_configs_of_two_calls_share_nothing():
    def parse(*fields):
        arguments = ["--config=tests/tiny_run.py", *fields]
        define = lambda values: main.define_flags(values, arguments)
        return command.parse(arguments, define, None).config

    assert parse("--config.num_bits=16").num_bits == 16
    assert parse("--config.seed=2").num_bits == 12
    with pytest.raises(ValueError, match="--config.num_bits=many"):
        parse("--config.num_bits=many")


@loads_config
@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("agent.num_step", "the config has no field 'num_step'; did you mean \"num_steps\"?"),
        ("zzz", "the config has no field 'zzz'; configs/default.py has all fields"),
    ],
)
def test_a_missing_field_of_the_config_is_named(field, line):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the whole text is compared below
        main.main(["--config=tests/tiny_run.py", f"--config.{field}=1"])
    assert str(error.value) == line


@loads_config
def test_an_error_in_a_config_file_is_one_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    raise KeyError('a.jpg does not decode')\n")
    with pytest.raises(ValueError, match="a.jpg does not decode"):
        main.main([f"--config={path}"])


def test_bad_arguments_of_main_get_one_line_and_status_2(tmp_path):
    config = "--config=configs/scenes_dch.py"
    cases = {
        (config, "--config.bass.num_epochs=3"): "bass",
        (config, "--config.num_bits=many"): "num_bits",
        (config, "--stage=bake"): "stage",
        ("--config=configs/none.py",): "none.py",
        (): "--config",
        ("--config=configs/coco18_dch.py", f"--config.dataset.root={tmp_path / 'no'}"): "no",
    }
    for arguments, named in cases.items():
        result = subprocess.run(
            [sys.executable, "-m", "mch_jax.main", *arguments, f"--workdir={tmp_path / 'run'}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.returncode == 2, (arguments, result.stderr)
        assert len(lines) == 1, result.stderr
        assert named in lines[0]
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\x1b[2J\nb"), "error: a\\x1b[2J b"),
        (ValueError(), "error: ValueError"),
        (OSError(28, "No space left on device", "a.npz"),
         "error: a.npz: No space left on device; free some space and start again; files that were "
         "complete are kept"),
        (PermissionError(13, "Permission denied", "a.npz"),
         "error: a.npz: Permission denied; check its permissions, or choose another place"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"),
         "error: out of memory on the device (RESOURCE_EXHAUSTED: 9 GiB); lower the batch sizes"),
    ],
)  # fmt: skip
def test_an_error_is_printed_in_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as stop:
        command.fail(error)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


def record(path, level):
    return logging.LogRecord("absl", level, str(path), 1, "", (), None)


def test_information_is_shown_from_every_module_of_the_package():
    for path in PACKAGE.rglob("*.py"):
        assert command.is_shown(record(path, logging.INFO)), path


@pytest.mark.parametrize(
    "path", ["/usr/lib/python3/orbax/checkpoint.py", "/home/me/mch_jax/.venv/lib/orbax/handler.py"]
)
def test_only_warnings_are_shown_from_libraries(path):
    assert not command.is_shown(record(path, logging.INFO))
    assert command.is_shown(record(path, logging.WARNING))


def test_the_line_about_a_download_is_shown(tmp_path):
    (tmp_path / "source").write_bytes(b"abc")
    url = (tmp_path / "source").as_uri()
    script = (
        "import pathlib, sys\n"
        "from absl import logging\n"
        "from mch_jax import command\n"
        "from mch_jax.data import fetch\n"
        "def main(arguments):\n"
        "    url, folder = arguments\n"
        "    logging.info('from the script, which is not in the package')\n"
        "    fetch.download(fetch.Archive('a.bin', url), pathlib.Path(folder))\n"
        "command.run(main)\n"
    )
    result = run_script(script, url, str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert pathlib.Path(fetch.__file__).name in line
    assert url in line
    assert (tmp_path / "out" / "a.bin").read_bytes() == b"abc"


CONTROLS = "a\x1b[2Jb\x07\r\x85\u202e\ud800.jpg"
ESCAPED = r"a\x1b[2Jb\x07\r\x85\u202e\ud800.jpg"


def test_control_characters_reach_no_terminal(capsys):
    script = (
        "import logging; from mch_jax import command\n"
        "def main(arguments):\n"
        f"    command.show({CONTROLS!r}, 'ä 漢')\n"
        f"    command.logging.warning('%s', {CONTROLS!r})\n"
        f"    raise ValueError({CONTROLS!r})\n"
        "command.run(main, [])"
    )
    result = run_script(script)
    assert result.returncode == 2
    assert result.stdout.splitlines() == [ESCAPED, "ä 漢"]
    *_, log, error = result.stderr.splitlines()
    assert log.endswith(ESCAPED)
    assert error == f"error: {ESCAPED.replace(chr(92) + 'r' + chr(92) + 'x85', ' ')}"
