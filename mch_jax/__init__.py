"""Multiple Code Hashing for image retrieval, in JAX."""

import os
import typing

if typing.TYPE_CHECKING:
    from mch_jax.retriever import Retriever

__version__ = "0.1.0"
__path__.append(os.path.join(__path__[0], "former"))  # see mch_jax.former


def load(
    run: str | os.PathLike[str],
    database: str | os.PathLike[str] | None = None,
    backbone: str | typing.Callable[..., typing.Any] | None = None,
    *,
    codes: str | os.PathLike[str] | None = None,
) -> "Retriever":
    """Returns a finished run, to encode photos and to search its database.

    Args:
      run: The workdir of the run.
      database: A codes file to search instead of the run's database, such as one of
        `mch_jax.export`.
      backbone: The run's backbone (docs/backbones.md), if it is a Python function or a file that
        was moved: its import path or path, or the function itself.
      codes: Former name of `database`.

    Raises:
      ValueError: The run is not finished, a file is missing or damaged, the codes are of another
        length, or the backbone cannot be opened.
    """
    from mch_jax.retriever import Retriever  # imports JAX, which takes seconds

    return Retriever(run, database or codes, backbone)
