"""Base hashing models: how each of them turns features into codes, and what it minimises.

`base` defines what a method consists of. Every other file is one method, and `METHODS` is the table
of them. To add a method, write its file, its line in the table, and its configs
(docs/new-method.md).
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from mch_jax.methods import (
    adsh,
    csq,
    dch,
    dphn,
    dpn,
    hashnet,
    hyp2,
    itq,
    ksh,
    lsh,
    mmhh,
    orthohash,
    talr,
)
from mch_jax.methods.base import Method, Objective

# In the order of the paper's Table 2, followed by methods that are not in it.
METHODS: dict[str, Method] = {
    "lsh": Method(closed_form=lsh.fit),
    "itq": Method(closed_form=itq.fit),
    "ksh": Method(ksh.ksh, closed_form=ksh.fit, kernel_head=True),
    "hashnet": Method(hashnet.hashnet),
    "adsh": Method(adsh.adsh, alternating=adsh.alternating),
    "dch": Method(dch.dch),
    "mmhh": Method(mmhh.mmhh),
    "orthohash": Method(orthohash.orthohash),
    "hyp2": Method(hyp2.hyp2),
    "csq": Method(csq.csq),
    "dpn": Method(dpn.dpn),
    "talr": Method(talr.talr),
    "dphn": Method(dphn.dphn, alternating=dphn.alternating),
}

# The methods that have a pair loss, hence a reward and an agent.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    name: method.objective for name, method in METHODS.items() if method.objective
}

_MAY_BE_ZERO = ("penalty_weight", "continuation", "threshold", "beta")


def objective(name: str, num_bits: int, **settings: object) -> Objective:
    """Returns the losses of a base hashing model, the same object for the same arguments.

    Args:
      name: One of `OBJECTIVES`.
      num_bits: Code length q.
      **settings: Numbers that the method's function takes, for instance `gamma` of `dch`. None
        stands for the method's default.

    Raises:
      ValueError: The name or a setting is unknown, or a value is out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"method: got {name!r}, expected one of {', '.join(OBJECTIVES)}")
    if num_bits < 1:
        raise ValueError(f"num_bits: got {num_bits}, expected at least 1")
    settings = {name: value for name, value in settings.items() if value is not None}
    allowed = list(inspect.signature(OBJECTIVES[name]).parameters)[1:]
    for setting in settings:
        if setting not in allowed:
            choices = ", ".join(allowed) or "none"
            raise ValueError(f"{name}: unknown setting {setting!r}, expected one of: {choices}")
    numbers = {k: _number(f"{name}: {k}", v) for k, v in settings.items()}
    return _made(OBJECTIVES[name], num_bits, tuple(sorted(numbers.items())))


@functools.lru_cache(maxsize=64)
def _made(function: Callable[..., Objective], num_bits: int, settings: tuple) -> Objective:
    """Returns an objective; as a static argument of jit, equal ones are compiled once."""
    return function(num_bits, **dict(settings))._replace(num_bits=num_bits)


def training_settings(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a method's own training.

    A field `{name}_{setting}` sets a keyword argument of the method's `closed_form` or
    `alternating`. Fields of other methods are ignored.

    Args:
      name: One of `METHODS`.
      fields: Values by field, such as the section `base` of a config.

    Raises:
      ValueError: A setting is unknown, or a value is not a number, below 1 where the default is
        an integer, or below 0 elsewhere.
    """
    method = METHODS[name]
    function = method.alternating or method.closed_form
    known = inspect.signature(function).parameters if function else {}
    defaults = {
        setting: parameter.default
        for setting, parameter in known.items()
        if parameter.kind is parameter.KEYWORD_ONLY and setting != "num_anchors"
    }
    settings = {}
    for field, value in fields.items():
        if not field.startswith(f"{name}_"):
            continue
        setting = field.removeprefix(f"{name}_")
        if setting not in defaults:
            choices = ", ".join(f"{name}_{x}" for x in defaults) or "none"
            raise ValueError(f"{field}: {name} has no such setting, expected one of: {choices}")
        is_integer = isinstance(defaults[setting], int)
        is_number = _is_number(value) and (value == int(value) or not is_integer)
        if not is_number or value < is_integer:
            expected = "a whole number of at least 1" if is_integer else "a number of at least 0"
            raise ValueError(f"{field} is {value!r}, expected {expected}")
        settings[setting] = value
    return settings


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _number(what: str, value: Any) -> float:
    """Returns a setting's value as a float, or raises ValueError."""
    may_be_zero = what.endswith(_MAY_BE_ZERO)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if is_number and (value > 0 or (value == 0 and may_be_zero)):
        return float(value)
    least = "at least 0" if may_be_zero else "above 0"
    raise ValueError(f"{what} is {value!r}, expected a number {least}")
