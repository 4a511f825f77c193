"""A codes file as SQL for PostgreSQL 14 or newer: tables, and functions that search them."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from mch_jax.files import whole_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import MAX_BITS, BucketIndex, words_from_bytes

HEAD = """\
-- {codes} codes of {num_bits} bits of {images} images; load with psql -f. See docs/sql.md.
BEGIN;
DROP TABLE IF EXISTS mch_codes, mch_pivots, mch_images CASCADE;
CREATE TABLE mch_images (image integer PRIMARY KEY, id text NOT NULL);
CREATE TABLE mch_pivots (pivot smallint PRIMARY KEY, code bigint NOT NULL);
CREATE TABLE mch_codes (
  pivot smallint NOT NULL, ring smallint NOT NULL, code bigint NOT NULL, image integer NOT NULL
);
"""

# Let delta be the distance from the query to a pivot. By the triangle inequality, a code within the
# radius lies in a ring around its pivot between delta - radius and delta + radius. Its pivot is the
# nearest one, so that the ring is also at most the smallest delta plus the radius.
TAIL = """\
CREATE INDEX ON mch_codes (pivot, ring) INCLUDE (code, image);
CREATE OR REPLACE FUNCTION mch_within(query bigint, radius integer)
RETURNS TABLE (image integer, distance integer) LANGUAGE sql STABLE AS $$
  WITH near AS (
    SELECT pivot, delta, min(delta) OVER () AS nearest
    FROM (SELECT pivot, bit_count((code # query)::bit(64))::integer AS delta FROM mch_pivots) AS p
  )
  SELECT c.image, min(bit_count((c.code # query)::bit(64)))::integer AS distance
  FROM near JOIN mch_codes AS c ON c.pivot = near.pivot
    AND c.ring BETWEEN near.delta - radius AND near.nearest + radius
  WHERE bit_count((c.code # query)::bit(64)) <= radius
  GROUP BY c.image ORDER BY distance, image
$$;
CREATE OR REPLACE FUNCTION mch_nearest(query bigint, k integer)
RETURNS TABLE (image integer, distance integer) LANGUAGE plpgsql STABLE AS $$
DECLARE
  radius integer := 2;
BEGIN
  WHILE radius < {num_bits}
    AND (SELECT count(*) FROM (SELECT 1 FROM mch_within(query, radius) LIMIT k) AS w) < k
  LOOP
    radius := radius + greatest(2, radius / 3);
  END LOOP;
  RETURN QUERY SELECT * FROM mch_within(query, radius) LIMIT k;
END
$$;
COMMIT;
ANALYZE mch_codes;
"""


def signed(codes: UInt8[np.ndarray, "c bytes"], num_bits: int) -> Int[np.ndarray, " c"]:
    """Returns codes as values of the type bigint.

    Bit i of a code is bit i of the 64-bit integer in two's complement.

    Args:
      codes: Packed codes of at most 64 bits.
      num_bits: Code length.

    Raises:
      ValueError: num_bits is above 64, or the codes have the wrong form.
    """
    if num_bits > MAX_BITS:
        raise ValueError(
            f"codes have {num_bits} bits, expected at most {MAX_BITS}: the tables keep a code in a "
            "bigint; search longer codes with mch_jax.index"
        )
    return words_from_bytes(codes, num_bits).view(np.int64)


def statements(file: CodeFile) -> Iterator[str]:
    """Yields the SQL file in parts: definitions of the tables, their rows, and the functions."""
    code = signed(file.codes, file.num_bits)
    index = BucketIndex.build(file.codes, file.item, file.num_bits)
    pivot, ring = index.rings(file.codes)
    yield HEAD.format(codes=len(code), num_bits=file.num_bits, images=len(file.ids))
    yield from _copy("mch_images", enumerate(map(_escaped, file.ids.tolist())))
    yield from _copy("mch_pivots", enumerate(index.pivots.view(np.int64).tolist()))
    columns = (pivot, ring, code, file.item)
    yield from _copy("mch_codes", zip(*(column.tolist() for column in columns), strict=True))
    yield TAIL.format(num_bits=file.num_bits)


def _copy(table: str, rows) -> Iterator[str]:
    yield f"COPY {table} FROM stdin;\n"
    for row in rows:
        yield "\t".join(map(str, row)) + "\n"
    yield "\\.\n"


def _escaped(text: str) -> str:
    """Returns a text with the characters escaped that have a meaning in the COPY format.

    Raises:
      ValueError: PostgreSQL cannot store the text.
    """
    if "\0" in text or any("\ud800" <= x <= "\udfff" for x in text):
        raise ValueError(
            f"the name {text[:80]!r} holds a zero byte or half a character, which PostgreSQL "
            "cannot store; rename the photo and encode it again"
        )
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text


def export(file: CodeFile, path: Path) -> None:
    """Writes a codes file as SQL. The file appears complete or not at all.

    Args:
      file: Content of the codes file.
      path: Path of the SQL file.

    Raises:
      ValueError: The codes have more than 64 bits, or PostgreSQL cannot store a name.
    """
    with (
        whole_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as stream,
    ):
        parts = statements(file)
        while chunk := "".join(itertools.islice(parts, 10_000)):
            stream.write(chunk)
