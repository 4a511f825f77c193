"""Multiple Code Hashing for image retrieval, in JAX."""

import os
import typing

if typing.TYPE_CHECKING:
    from mch_jax.retriever import Retriever

__version__ = "0.1.0"
__path__.append(os.path.join(__path__[0], "former"))


def load(run: str | os.PathLike[str], codes: str | os.PathLike[str] | None = None) -> "Retriever":
    """Returns a finished run to encode photos with, and to search its database.

    Args:
      run: workdir of the run.
      codes: a codes file to search instead, such as one of `mch_jax.export`.

    Raises:
      ValueError: the run is not finished, or a file is missing, damaged or of another code length.
    """
    from mch_jax.retriever import Retriever  # JAX takes seconds that importing this need not

    return Retriever(run, codes)
