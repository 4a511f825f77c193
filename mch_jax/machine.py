"""The cores of this machine, on every operating system."""

import os


def cores() -> list[int]:
    """Returns the numbers of the cores that this process may use, ascending.

    Only Linux says which cores a process may use; elsewhere they are all cores of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
