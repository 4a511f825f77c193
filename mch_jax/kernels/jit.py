"""Decorators that compile a kernel, and the rule for when a compiled kernel is out of date."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.extending
from absl import logging


def _digest() -> str:
    """Returns a digest of all source files of this package."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


_DIGEST = _digest()


def _compiler(**options: Any) -> Callable[[Callable], Any]:
    """Returns a decorator that compiles a function on its first call and caches it on disk.

    Compiled kernels contain the kernels that they call, often of another module, but numba compares
    only a function's own file with its cache. Here the sources of the whole package are compared,
    so that a change to any module compiles every kernel again. Where there is no directory that
    the user may write to, every process compiles its own kernels.
    """
    jit: Any = numba.njit

    def decorate(function: Callable) -> Any:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            compiled = jit(cache=True, **settings)(function)
        except RuntimeError:  # neither the package's folder nor the user's home can be written to
            text = "Compiled kernels cannot be kept; set NUMBA_CACHE_DIR to a folder of your own"
            logging.log_first_n(logging.WARNING, text, 1)
            compiled = jit(**settings)(function)
        file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
        if file is not None:
            file._source_stamp = (file._source_stamp, _DIGEST)
        return compiled

    return decorate


# Kernels call an intrinsic without its first parameter, which type checkers do not know.
intrinsic: Callable[[Callable], Any] = numba.extending.intrinsic
kernel = _compiler()
# Numba counts references to arrays with atomic operations, in every call. Functions that allocate
# no memory are compiled without the counting, which took a quarter of the time of a query. A leaf
# must not return an array: a kernel would release the reference that the leaf did not count.
leaf = _compiler(_nrt=False)
# Tuples of many arrays are copied in each call. A leaf that is called for every query and takes
# several of them is put in its callers' place.
inlined = _compiler(_nrt=False, inline="always")
