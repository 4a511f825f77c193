"""Random damage to files, and the check that readers handle it."""

import pathlib
import warnings

from hypothesis import strategies as st


def read_or_refuse(path: pathlib.Path, read) -> None:
    """Calls a reader, which must return or raise a ValueError with a message of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns about damaged headers
            read(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017


damage = st.tuples(
    st.integers(0, 2**16), st.binary(max_size=12), st.sampled_from(["write", "insert", "cut"])
)


def damaged(data: bytes, position: int, new: bytes, how: str) -> bytes:
    """Returns data in which bytes are overwritten, inserted or cut at a position."""
    position %= len(data)
    if how == "cut":
        return data[:position] + data[position + len(new) :]
    return data[:position] + new + data[position + (len(new) if how == "write" else 0) :]
