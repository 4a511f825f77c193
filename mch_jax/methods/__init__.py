"""Base hashing models: objectives that a network is trained on, and closed-form projections."""

import inspect
import math
from collections.abc import Callable
from typing import Any

from mch_jax.methods import adsh, dch, hashnet, itq, ksh, lsh, mmhh
from mch_jax.methods.base import Objective

METHODS: dict[str, Callable[..., Objective]] = {
    "ksh": ksh.ksh,
    "hashnet": hashnet.hashnet,
    "adsh": adsh.adsh,
    "dch": dch.dch,
    "mmhh": mmhh.mmhh,
}

# Linear hash layers in closed form, (features, num_bits, key) -> kernel [d q], bias [q]. They have
# no pair loss, hence no reward: baselines, not bases of an agent. KSH's own is `ksh.fit`.
PROJECTIONS = {"lsh": lsh.fit, "itq": itq.fit}

_MAY_BE_ZERO = ("penalty_weight", "continuation")


def objective(name: str, num_bits: int, **settings: object) -> Objective:
    """Returns a base hashing model by name.

    Args:
      name: one of `METHODS`.
      num_bits: code length q.
      **settings: numbers that the method's factory takes, for instance `gamma` of `dch`; its own
        default where the value is None.

    Raises:
      ValueError: if the name or a setting is unknown, or a value is out of range.
    """
    if name not in METHODS:
        raise ValueError(f"method: got {name!r}, expected one of {', '.join(METHODS)}")
    if num_bits < 1:
        raise ValueError(f"num_bits: got {num_bits}, expected at least 1")
    settings = {name: value for name, value in settings.items() if value is not None}
    allowed = list(inspect.signature(METHODS[name]).parameters)[1:]
    for setting in settings:
        if setting not in allowed:
            choices = ", ".join(allowed) or "none"
            raise ValueError(f"{name}: unknown setting {setting!r}, expected one of: {choices}")
    return METHODS[name](num_bits, **{k: _number(f"{name}: {k}", v) for k, v in settings.items()})


def _number(what: str, value: Any) -> float:
    """Returns a setting's value as a float, or raises ValueError."""
    may_be_zero = what.endswith(_MAY_BE_ZERO)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if is_number and (value > 0 or (value == 0 and may_be_zero)):
        return float(value)
    least = "at least 0" if may_be_zero else "above 0"
    raise ValueError(f"{what} is {value!r}, expected a number {least}")
