"""Config files by name: `--config=scenes_dch`, in the repository and in an installed package.

A name stands for the file NAME.py in configs/ of the current directory or else in the configs that
come with mch_jax. A config file can import these in any directory: `from configs import default`.
"""

import difflib
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

PACKAGE = Path(__file__).parent


def folders() -> list[Path]:
    """Returns the folders of config files, the one that is looked at first before the others."""
    own = PACKAGE / "configs"  # in a wheel; in the repository, configs/ is beside the package
    if not own.is_dir():
        own = PACKAGE.parent / "configs"
    found = [Path("configs").absolute(), own]
    return [x for x in dict.fromkeys(found) if x.is_dir()]


def names() -> list[str]:
    """Returns the names of all configs of a data set and a method, in alphabetical order."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*_*.py")})


def find(config: str) -> str:
    """Returns the path of a config that is given as a path or a name.

    Args:
      config: A path, or the name of a file in one of `folders`. What follows a colon is for
        `get_config` of the file and is kept.

    Raises:
      ValueError: There is neither a file nor a config of this name.
    """
    path, colon, argument = config.partition(":")
    if Path(config).is_file() or Path(path).is_file():
        return config
    for folder in folders():
        if (folder / f"{path}.py").is_file() and Path(path).name == path:
            return f"{folder / path}.py{colon}{argument}"
    close = difflib.get_close_matches(Path(path).stem, names(), n=1)
    expected = f"did you mean {close[0]}?" if close else f"expected a path or one of {names()}"
    raise ValueError(f"--config={config} is neither a file nor the name of a config; {expected}")


def load(config: str) -> ConfigDict:
    """Returns a config that is given as a path or a name, such as `scenes_dch`.

    Raises:
      ValueError: There is neither a file nor a config of this name.
    """
    _make_importable()
    return runpy.run_path(find(config))["get_config"]()


def resolved(arguments: Sequence[str]) -> list[str]:
    """Returns arguments of a command with the path of the config in place of its name.

    Afterwards, config files can import others of `folders` from the package `configs`.

    Raises:
      ValueError: There is no config of this name.
    """
    _make_importable()
    found, is_value = [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        is_config = flag in ("--config", "-config")
        if is_value:
            argument = find(argument)
        elif is_config and value:
            argument = f"{flag}={find(value)}"
        is_value = is_config and not equals
        found.append(argument)
    return found


def _make_importable() -> None:
    """Makes `folders` the package `configs`, from which config files import what they share."""
    if "configs" not in sys.modules:
        configs = types.ModuleType("configs")
        configs.__path__ = [str(folder) for folder in folders()]
        sys.modules["configs"] = configs
