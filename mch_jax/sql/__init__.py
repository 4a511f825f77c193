"""Export of a codes file to PostgreSQL. `python -m mch_jax.sql` is the command."""

from mch_jax.sql.postgres import export, signed, statements

__all__ = ["export", "signed", "statements"]
