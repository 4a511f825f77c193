"""Values of JSON files, checked against what their readers expect."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mch_jax.files.regular import Refused

_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


class Number(NamedTuple):
    """A finite number within bounds.

    Attributes:
      low: Smallest value.
      high: Largest value.
      is_whole: Whether it has to be a whole number.
    """

    low: float
    high: float
    is_whole: bool = False


class Optional(NamedTuple):
    """What the value of a key has to be if the key is there.

    Attributes:
      expected: What `check` takes.
    """

    expected: Any


def parse(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
      ValueError: The text is not JSON. NaN and infinity, which Python would read, are not either.
    """

    def refuse(name: str) -> None:
        raise Refused(f"{name} is not a number of JSON")

    return json.loads(text, parse_constant=refuse)


def check(value: Any, expected: Any, name: str = "it") -> None:
    """Checks the structure of a JSON value.

    Args:
      value: The value.
      expected: A `Number`, one of the types int, float, str and bool, a list of one of these for a
        list of any length, or a mapping of keys that have to be there to what their values have to
        be, with `Optional` for keys that may be missing. A float may also be a whole number.
      name: What the value is called in the error.

    Raises:
      Refused: The value is another one. The error names the first place that differs.
    """
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping):
            raise Refused(f"{name} is {_short(value)}, expected an object")
        for key, inner in expected.items():
            place = key if name == "it" else f"{name}.{key}"
            if key in value:
                check(value[key], inner.expected if isinstance(inner, Optional) else inner, place)
            elif not isinstance(inner, Optional):
                raise Refused(f"{place} is missing")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise Refused(f"{name} is {_short(value)}, expected a list")
        for row, item in enumerate(value):
            check(item, expected[0], f"{name}[{row}]")
    elif isinstance(expected, Number):
        check(value, int if expected.is_whole else float, name)
        if not expected.low <= value <= expected.high:
            bounds = f"{expected.low:g} to {expected.high:g}"
            raise Refused(f"{name} is {_short(value)}, expected {bounds}")
    elif not _is_a(value, expected):
        raise Refused(f"{name} is {_short(value)}, expected {_NAMES[expected]}")


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    return type(value) is kind


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
