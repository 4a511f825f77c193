"""Writes a codes file as SQL for PostgreSQL 14 or newer, with functions that search it exactly.

python -m mch_jax.sql --codes=RUN/codes/database.npz --out=codes.sql
psql DATABASE -f codes.sql
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from mch_jax.files import codes_file
from mch_jax.files.checkpoint import whole_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex, to_words
from mch_jax.main import run_command

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

# By the triangle inequality a code within a radius lies in a ring around its pivot between
# delta - radius and delta + radius, and no farther from its pivot than the nearest one + radius.
TAIL = """\
CREATE INDEX ON mch_codes (pivot, ring) INCLUDE (code, image);
CREATE FUNCTION mch_within(query bigint, radius integer)
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
CREATE FUNCTION mch_nearest(query bigint, k integer)
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
    """Returns codes as bigint has them: 64 bits in two's complement, bit i of a code bit i."""
    return to_words(codes, num_bits).view(np.int64)


def statements(file: CodeFile) -> Iterator[str]:
    """Yields the parts of the SQL file: tables, rows, functions."""
    index = BucketIndex.build(file.codes, file.item, file.num_bits)
    pivot, ring = index.rings(file.codes)
    code = signed(file.codes, file.num_bits)
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
    """Returns a text as COPY reads it."""
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text


def export(file: CodeFile, path: Path) -> None:
    """Writes a codes file as SQL, whole or not at all.

    Raises:
      ValueError: the codes have more than 64 bits.
    """
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        parts = statements(file)
        while chunk := "".join(itertools.islice(parts, 10_000)):
            stream.write(chunk)


def define_flags() -> None:
    """Defines the flags of the command line."""
    flags.DEFINE_string("codes", None, "The codes file to write.")
    flags.DEFINE_string("out", None, "The SQL file.")


def main(_: list[str]) -> None:
    """Writes what the flags say."""
    if not flags.FLAGS.codes or not flags.FLAGS.out:
        raise ValueError("--codes or --out is missing; expected a codes file, and a place for SQL")
    file = codes_file.load(flags.FLAGS.codes)
    export(file, Path(flags.FLAGS.out))
    codes, images = len(file.codes), len(file.ids)
    print(f"{codes:,} codes of {images:,} images: psql DATABASE -f {flags.FLAGS.out}")  # noqa: T201


if __name__ == "__main__":
    define_flags()
    run_command(main)
