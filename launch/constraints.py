"""Prints the exact versions of the packages that the demo needs, as pip constraints.

.venv/bin/python launch/constraints.py > launch/constraints.txt

These are the installed packages that mch_jax[scenes,pretrained] depends on, directly or indirectly.
"""

import re
import sys
from importlib import metadata

EXTRAS = {"scenes", "pretrained"}


def needs(name: str, extras: set[str]) -> list[tuple[str, set[str]]]:
    """Returns the packages, with their extras, that a package requires on this machine."""
    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        chosen = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        marker = requirement.marker
        if marker is None or any(marker.evaluate(x) for x in chosen):
            found.append((requirement.name, set(requirement.extras)))
    return found


def main() -> None:
    """Prints the lock."""
    seen: dict[str, str] = {}
    waiting = [("mch_jax", EXTRAS)]
    while waiting:
        name, extras = waiting.pop()
        key = re.sub("[-_.]+", "-", name).lower()
        if key in seen and not extras:
            continue
        try:
            seen[key] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # for another machine or Python
        waiting += [need for need in needs(name, extras) if need != (name, extras)]
    seen.pop("mch-jax")
    print(
        f"# Made by launch/constraints.py with Python {sys.version_info[0]}.{sys.version_info[1]}"
    )
    for name, version in sorted(seen.items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
