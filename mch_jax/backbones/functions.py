"""Python functions as backbones, named by an import path such as `package.module:function`."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from mch_jax.files.whole import first_line

EXPECTED = "expected package.module:function"


def find(path: str) -> Callable[..., Any]:
    """Imports a module and returns its function. Importing runs the module's code.

    Args:
      path: `package.module:function`; the function may be an attribute of an object.

    Raises:
      ValueError: The path is malformed, the module cannot be imported, or there is no function.
    """
    name, colon, attribute = path.partition(":")
    parts = [*name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(f"backbone {path!r} is not an import path; {EXPECTED}")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name or ""
        if missing and f"{name}.".startswith(f"{missing}."):
            raise ValueError(
                f"backbone {path!r}: there is no module {missing}; install its package, or name "
                "its folder in PYTHONPATH"
            ) from None
        raise ValueError(
            f"backbone {path!r}: importing {name} raised {type(error).__name__} "
            f"({first_line(error)}); expected a module that can be imported"
        ) from error
    try:
        found = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ValueError(f"backbone {path!r}: {name} has no {attribute}; {EXPECTED}") from None
    if not callable(found):
        raise ValueError(
            f"backbone {path!r} is no function but of the type {type(found).__name__}; expected "
            "a function from uint8 photos [n, h, w, 3] to float32 features [n, d]"
        )
    return found
