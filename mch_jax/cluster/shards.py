"""The files of a sharded index."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from mch_jax.files import locks, read_json, schemas, write_json
from mch_jax.index import BucketIndex

FORMAT = "mch-shards/1"


def shard_of(item: Int[np.ndarray, " n"], num_shards: int) -> Int[np.ndarray, " n"]:
    """Returns the shard of each item, by a hash that spreads consecutive items."""
    hashed = np.asarray(item).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((hashed >> np.uint64(32)) % np.uint64(num_shards)).astype(np.int64)


class Shards:
    """The files of a sharded index: one saved `BucketIndex` per shard, and the number of shards.

    Several processes may read and change the files; a lock per shard orders their changes.

    Attributes:
      directory: The directory of the files.
      num_bits: The code length.
      num_shards: The number of shards.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens the files that `build` has written.

        Raises:
          ValueError: There are no shards in the directory, or shards.json is damaged.
        """
        self.directory = Path(directory).absolute()
        path = self.directory / "shards.json"
        meta = read_json(path, "make the shards with --codes=FILE", schemas.SHARDS)
        if meta["format"] != FORMAT:
            raise ValueError(
                f"{path} is of format {meta['format']!r}, expected {FORMAT!r}; make the "
                "shards again"
            )
        self.num_bits, self.num_shards = meta["num_bits"], meta["shards"]
        self._indexes: dict[int, BucketIndex] = {}  # as they were after this object's last change

    @classmethod
    def build(
        cls,
        codes: UInt8[np.ndarray, "c bytes"],
        item: Int[np.ndarray, " c"],
        num_bits: int,
        directory: str | os.PathLike,
        num_shards: int,
    ) -> "Shards":
        """Writes the shards of codes and their items.

        shards.json is written last, so that an unfinished directory cannot be opened.

        Raises:
          ValueError: The directory holds shards already, or the codes or items are not valid; see
            `BucketIndex.build`.
        """
        directory = Path(directory)
        if (directory / "shards.json").exists():
            raise ValueError(f"{directory} holds shards already; use another directory")
        directory.mkdir(parents=True, exist_ok=True)
        BucketIndex.build(codes[:0], item[:0], num_bits)  # refuses wrong arguments first
        shard = shard_of(item, num_shards)
        for number in range(num_shards):
            is_own = shard == number
            index = BucketIndex.build(codes[is_own], item[is_own], num_bits)
            index.save(directory / _name(number))
        meta = {"format": FORMAT, "num_bits": int(num_bits), "shards": num_shards}
        write_json(directory / "shards.json", meta)
        return cls(directory)

    def path(self, shard: int) -> Path:
        """Returns the directory of a shard."""
        return self.directory / _name(shard)

    def versions(self) -> list[str]:
        """Returns the version of each shard's files."""
        return [BucketIndex.version_of(self.path(shard)) for shard in range(self.num_shards)]

    def change(self, shard: int, change: Callable[[BucketIndex], None]) -> str:
        """Changes a shard and saves it; if the change fails, the files remain as they were.

        Args:
          shard: The shard.
          change: Changes the index that it is given.

        Returns:
          The version of the shard after the change.
        """
        with locks.locked(self.directory / f"{_name(shard)}.lock"):
            index = self._indexes.get(shard)
            if index is None or index.version != BucketIndex.version_of(self.path(shard)):
                index = BucketIndex.open(self.path(shard), like=index)
            self._indexes.pop(shard, None)  # a change that fails may leave this index half changed
            change(index)
            index.save(self.path(shard))
            self._indexes[shard] = index
            return index.version or ""


def _name(shard: int) -> str:
    return f"shard-{shard:04d}"
