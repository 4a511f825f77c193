"""Configs by name, the list of commands, and what a wheel holds."""

import shutil
import subprocess
import sys

import pytest

from mch_jax import __main__ as mch
from mch_jax import config_files
from mch_jax.config_files import PACKAGE

ROOT = PACKAGE.parent


@pytest.mark.parametrize(
    "arguments", [["--config=scenes_dch"], ["--config", "scenes_dch"], ["-config=scenes_dch"]]
)
def test_a_name_stands_for_the_file_from_any_folder(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, last = config_files.resolved([*arguments, "--seed=1"])[:-1]
    assert last.removeprefix("--config=").removeprefix("-config=") == str(
        ROOT / "configs" / "scenes_dch.py"
    )


def test_a_path_and_the_current_folder_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "scenes_dch.py"
    own.parent.mkdir()
    own.touch()
    assert config_files.find("scenes_dch") == str(own)
    assert config_files.find("configs/scenes_dch.py") == "configs/scenes_dch.py"
    assert config_files.find("coco_dch:x") == f"{ROOT / 'configs' / 'coco_dch.py'}:x"


@pytest.mark.parametrize("config", ["scene_dch", "configs/scenes_dhc.py"])
def test_a_mistyped_name_is_answered_with_the_nearest(config):
    with pytest.raises(ValueError, match=f"{config} is neither .*; did you mean scenes_dch?"):
        config_files.find(config)


def test_the_commands_are_listed_and_dispatched(capsys):
    assert mch.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in mch.COMMANDS)
    for name in mch.COMMANDS:
        with pytest.raises(SystemExit) as end:
            mch.main([name, "--help"])
        assert end.value.code == 0
        assert "--" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'serch' is not a command of mch; did you mean search?"):
        mch.main(["serch"])


COMPLETE = """
complete_words() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
  _mch
  echo "${COMPREPLY[@]}"
}
complete_words mch se
complete_words mch train --wo
complete_words mch dedup --noverify --no
complete_words mch train --config = scenes_d
complete_words mch train --config = scenes_dch --config.num
complete_words mch export --images = pho
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_commands_flags_and_configs(capsys):
    assert mch.main(["--completion=bash"]) == 0
    script = capsys.readouterr().out + COMPLETE
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "search serve", "--workdir=", "--noverify --nomirrored",
        "scenes_dch scenes_dphn scenes_dpn", "", "",
    ]  # fmt: skip


def test_a_wheel_has_the_configs_and_finds_them(tmp_path):
    """The wheel's files without the repository: build_py makes what a wheel packs."""
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path / 'lib'}"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / "lib" / "mch_jax" / "configs" / "default.py").is_file()
    use = (
        "from mch_jax import config_files, main; import functools; from mch_jax import command;"
        "a = config_files.resolved(['--config=scenes_dch']);"
        "o = command.parse(a, functools.partial(main.define_flags, arguments=a), '');"
        "print(a[0], o.config.dataset.name)"
    )
    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", use], cwd=tmp_path / "elsewhere", env={"PYTHONPATH": "../lib"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("lib/mch_jax/configs/scenes_dch.py scenes\n")
