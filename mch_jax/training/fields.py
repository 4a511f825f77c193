"""The fields of a resolved config by name, such as `base.num_epochs`, and which have an effect.

A config of an earlier version lacks fields that were added since. Those are listed here with the
value that means what every earlier version did, so that old runs resume and keep their digests.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Fields that switch a part on: their section, name and value where it is off, and the fields of the
# section that then have no effect; None for all of them. The last entry of a switch has the value
# of configs that lack it.
_SWITCHES = (
    ("model", "backbone", "", ("backbone", "mean", "std")),
    ("model", "conv_dtype", "float32", ("conv_dtype",)),
    (
        "agent",
        "evidence_backbone",
        "",
        ("evidence_backbone", "evidence_size", "evidence_mean", "evidence_std"),
    ),
    ("similarity", "source", "neighbours", ("threshold",)),
    ("similarity", "source", "labels", None),
)
# Further fields that old configs may lack.
_ADDED = {"agent.calibrate": False, "agent.evidence_features": "", "agent.select": "each"}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a nested config by the names of their fields, joined by dots."""
    found = {}
    for key, value in tree.items():
        name = prefix + key
        found |= flat(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return found


def with_effect(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved config without the fields of parts that are switched off."""
    found = dict(config)
    for section, switch, off, names in _SWITCHES:
        fields = found.get(section, {})
        if fields.get(switch, off) != off:
            continue
        if names is None:
            found.pop(section, None)
        elif section in found:
            found[section] = {name: fields[name] for name in fields if name not in names}
    return found


def effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values by field of `with_effect`."""
    return flat(with_effect(config))


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> None:
    """Checks that the config of a workdir's run is the present one.

    Args:
      before: Resolved config of the run, which may be of an earlier version.
      now: Resolved config.
      workdir: Directory of the run, for the error message.

    Raises:
      ValueError: A field differs, other than that of an additional log.
    """
    off = {f"{section}.{switch}": value for section, switch, value, _ in _SWITCHES}
    old, new = (_ADDED | off | effective(config) for config in (before, now))
    keys = (old.keys() | new.keys()) - {"tensorboard", "wandb"}
    for key in sorted(keys, key=lambda key: (key not in off, key)):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"workdir {workdir} belongs to a run with {key} = {old.get(key)}, this one has "
                f"{new.get(key)}; use that value, or another workdir"
            )
