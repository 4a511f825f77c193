"""Export of a codes file to PostgreSQL. `python -m mch_jax.sql` is the command."""

import typing

if typing.TYPE_CHECKING:
    from mch_jax.sql.postgres import export, signed, statements

__all__ = ["export", "signed", "statements"]


def __getattr__(name: str) -> typing.Any:
    """Imports what is used on first use; the help of the command does not wait for the index."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mch_jax.sql import postgres

    return getattr(postgres, name)
