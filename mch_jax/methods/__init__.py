"""Base hashing models: objectives that a network is trained on, and closed-form projections."""

import inspect
import math
from collections.abc import Callable

from mch_jax.methods import itq, lsh
from mch_jax.methods.adsh import adsh
from mch_jax.methods.dch import dch
from mch_jax.methods.hashnet import hashnet
from mch_jax.methods.ksh import ksh
from mch_jax.methods.mmhh import mmhh
from mch_jax.objective import Objective

METHODS: dict[str, Callable[..., Objective]] = {
    "ksh": ksh,
    "hashnet": hashnet,
    "adsh": adsh,
    "dch": dch,
    "mmhh": mmhh,
}

# Linear hash layers in closed form, (features, num_bits, key) -> kernel [d q], bias [q]. They have
# no pair loss, hence no reward: baselines, not bases of an agent. KSH's own is `ksh.fit`.
PROJECTIONS = {"lsh": lsh.fit, "itq": itq.fit}

_MAY_BE_ZERO = ("penalty_weight", "continuation")


def objective(name: str, num_bits: int, **settings: float) -> Objective:
    """Returns a base hashing model by name.

    Args:
      name: one of `METHODS`.
      num_bits: code length q.
      **settings: what the method's factory takes, for instance `gamma` of `dch`.

    Raises:
      ValueError: if the name or a setting is unknown, or a value is out of range.
    """
    if name not in METHODS:
        raise ValueError(f"method: got {name!r}, expected one of {', '.join(METHODS)}")
    if num_bits < 1:
        raise ValueError(f"num_bits: got {num_bits}, expected at least 1")
    allowed = list(inspect.signature(METHODS[name]).parameters)[1:]
    for setting, value in settings.items():
        if setting not in allowed:
            choices = ", ".join(allowed) or "none"
            raise ValueError(f"{name}: unknown setting {setting!r}, expected one of: {choices}")
        if not math.isfinite(value) or value < 0 or (value == 0 and setting not in _MAY_BE_ZERO):
            least = "at least 0" if setting in _MAY_BE_ZERO else "above 0"
            raise ValueError(f"{name}: {setting} is {value}, expected a number {least}")
    return METHODS[name](num_bits, **settings)
