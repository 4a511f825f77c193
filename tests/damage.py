"""Damaged files: what a test does to one, and what a reader may do with it."""

import pathlib
import warnings

from hypothesis import strategies as st


def read_or_refuse(path: pathlib.Path, read) -> None:
    """Anything but a result or a ValueError of one line fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, about what a damaged header says
            read(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017


damage = st.tuples(
    st.integers(0, 2**16), st.binary(max_size=12), st.sampled_from(["write", "insert", "cut"])
)


def damaged(data: bytes, place: int, new: bytes, how: str) -> bytes:
    place %= len(data)
    if how == "cut":
        return data[:place] + data[place + len(new) :]
    return data[:place] + new + data[place + (len(new) if how == "write" else 0) :]
