"""What the endpoints of the API have in common: the network, the database and their answers."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from mch_jax import codes, regions
from mch_jax.data import Dataset, sources
from mch_jax.database import Database, Neighbour, photo_reader
from mch_jax.encoder import FILE, Encoder
from mch_jax.index import probed_buckets
from mch_jax.query_codes import QueryRegions, unit_margins
from mch_jax.serving import about, decoders
from mch_jax.serving.about import Example
from mch_jax.serving.counters import Counters
from mch_jax.serving.decoders import Box, Decoders, Query
from mch_jax.serving.gate import Gate
from mch_jax.serving.limits import Limits, Refused
from mch_jax.serving.schemas import (
    Bucket,
    Choice,
    Encoded,
    Found,
    Health,
    Hit,
    Item,
    Probed,
    Probing,
    Ranking,
    Region,
    StoredCode,
)
from mch_jax.serving.thumbnails import Thumbnails
from mch_jax.serving.workers import Workers
from mch_jax.training.run import read_config, read_dataset


class Options(NamedTuple):
    """Which photos a search returns.

    Attributes:
      k: Largest number of photos.
      compare: Whether to search in the whole images' codes alone, too.
      query_codes: Codes of the query: `one`, `agent` or `all`.
      within: Largest distance in bits; any by default.
      label: The class that all photos have; any by default.
    """

    k: int
    compare: bool = False
    query_codes: str = "one"
    within: int | None = None
    label: str | None = None


class Service:
    """A run's encoder and a database, answering requests.

    Args:
      encoder: The encoder of the run.
      database: The database to search.
      method: Name of the base hashing model.
      limits: Limits on requests.
      query_codes: Codes that queries have unless a request says otherwise: `one`, `agent` or `all`.
      knows: What the encoder has learned from, in a sentence.
      examples: Photos to search with.
    """

    def __init__(
        self,
        encoder: Encoder,
        database: Database,
        method: str,
        limits: Limits,
        query_codes: str = "one",
        knows: str = "",
        examples: Sequence[Example] = (),
    ):
        self.encoder, self.database, self.method, self.limits = encoder, database, method, limits
        self.query_codes, self.knows, self.examples = query_codes, knows, examples
        self.counters = Counters()
        self.workers = Workers(encoder, self.counters.count_batch)
        self.decoders = Decoders(encoder.image_size, limits)
        self.thumbnails = Thumbnails(database.photo)
        self.example_thumbnails = Thumbnails(lambda number: examples[number].read())
        digest = hashlib.sha256(
            database.codes.tobytes() + "\0".join(database.ids.tolist()).encode()
        )
        self.fingerprint = digest.hexdigest()[:12]  # of the database, for thumbnails' ETags
        self.gate: Gate | None = None

    @classmethod
    def open(
        cls,
        run: Path,
        limits: Limits,
        codes_path: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
        query_codes: str = "one",
        backbone: str | None = None,
    ) -> "Service":
        """Returns the service of a finished run.

        Args:
          run: The workdir of the run.
          limits: Limits on requests.
          codes_path: A codes file to search instead of the run's database.
          images: The folder, tar or list of photos that this codes file was made from.
          query_codes: Codes that queries have unless a request says otherwise.
          backbone: The run's backbone, as `Encoder.from_run` takes it.

        Raises:
          ValueError: A file is missing or damaged, the codes are of another length, or the backbone
            cannot be opened.
        """
        encoder, config = Encoder.from_run(run, backbone), read_config(run)
        dataset = None
        with contextlib.suppress(ValueError):  # an encoder may be used where its data set is not
            dataset = read_dataset(config)
        if codes_path:
            database = exported_database(codes_path, images)
        else:
            database = run_database(run, dataset)
        database.check_num_bits(encoder.model.num_bits, run / FILE)
        return cls(
            encoder, database, config["method"], limits, query_codes,
            about.knowledge(run, config, dataset), about.examples(config, dataset),
        )  # fmt: skip

    def warm_up(self) -> None:
        """Builds the indexes and compiles every program, so that no request waits for it."""
        self.decoders.warm_up()
        self.workers.warm_up()
        if len(self.database):
            query = self.stored_code(0)
            self.search(query, Options(24, compare=True))
            self.probe(query, 1, 1)

    @property
    def pending(self) -> int:
        """The number of requests that are being answered or wait."""
        return self.gate.pending if self.gate else 0

    def existing(self, item: int) -> int:
        """Returns the item if the database has it.

        Raises:
          Refused: It does not.
        """
        count = len(self.database)
        if item >= count:
            raise Refused(404, f"There is no photo {item}; the database has {count:,}, from 0.")
        return item

    def options(
        self, k: int, compare: bool, query_codes: str | None, within: int | None, label: str | None
    ) -> "Options":
        """Returns the options of a search, with the service's defaults.

        Raises:
          Refused: There is no such label.
        """
        if label is not None and label not in self.database.classes:
            known = "/health lists them" if self.database.classes else "the database has none"
            raise Refused(422, f"There is no label '{label}'; {known}.")
        return Options(k, compare, query_codes or self.query_codes, within, label)

    def health(self) -> Health:
        """Returns what is served."""
        return Health(
            status="ok",
            method=self.method,
            num_bits=self.database.num_bits,
            photos=len(self.database),
            codes=len(self.database.codes),
            query_codes=Choice(self.query_codes),
            labels=list(self.database.classes),
            knows=self.knows,
            examples=[example.name for example in self.examples],
            pending=self.pending,
        )

    def describe(self, item: int) -> Item:
        """Returns a photo's name, size, labels and codes."""
        width, height = self.database.size(item)
        return Item(
            item=item,
            id=str(self.database.ids[item]),
            width=width,
            height=height,
            labels=self.database.class_names(item),
            codes=[self._stored_code(item, row) for row in self.database.rows(item)],
        )

    def _stored_code(self, item: int, row: int) -> StoredCode:
        box = self.database.box[row].tolist()
        return StoredCode(
            region=regions.region_name(box, *self.database.size(item)),
            box=box,
            code=self.database.codes[row].tobytes().hex(),
            keep_prob=float(self.database.keep_prob[row]),
        )

    def search(self, query: QueryRegions, options: Options, item: int | None = None) -> Found:
        """Returns the photos that are nearest to a query.

        Args:
          query: The codes and logits of one query, the whole photo's first.
          options: Which photos to return.
          item: The photo of the database that the query is, if any.
        """
        return Found(
            code=query.codes[0, 0].tobytes().hex(),
            num_bits=self.database.num_bits,
            mch=self._ranking(query, options, False, item),
            base=self._ranking(query, options, True, item) if options.compare else None,
        )

    def _ranking(
        self, query: QueryRegions, options: Options, is_base: bool, item: int | None
    ) -> Ranking:
        neighbours, hits = self.database.search(
            query.codes[0], options.k, is_base, query.margins[0], first=item,
            within=options.within, label=options.label,
        )  # fmt: skip
        return Ranking(
            probed=int(hits.probed[0]),
            nonempty=int(hits.nonempty[0]),
            hits=[self._hit(neighbour) for neighbour in neighbours],
        )

    def stored_code(self, item: int) -> QueryRegions:
        """Returns the whole photo's code of an item as a query, without its logits."""
        code = self.database.whole_code(item)[None]
        every = np.ones((1, 1), bool)
        return QueryRegions(code, every, np.zeros((1, 1, self.database.num_bits), np.float32))

    def probe(
        self, query: QueryRegions, budget: int, limit: int, item: int | None = None
    ) -> Probed:
        """Returns the buckets that a search looks at, by Hamming and by quantization distance.

        Args:
          query: The codes and logits of one query.
          budget: The number of buckets.
          limit: The number of photos that are listed for each bucket.
          item: The photo of the database that the query is, if any; its labels are compared.
        """
        # Equal codes of different regions have different margins, and both count.
        query_codes, margins = query.codes[0], query.margins[0]
        (bits,) = unit_margins(query.codes, self.database.num_bits)
        return Probed(
            num_bits=self.database.num_bits,
            codes=len(np.unique(query_codes, axis=0)),
            hamming=self._probing(query_codes, bits, budget, limit, item),
            gqr=self._probing(query_codes, margins, budget, limit, item),
        )

    def _probing(
        self,
        query_codes: np.ndarray,
        margins: np.ndarray,
        budget: int,
        limit: int,
        item: int | None,
    ) -> Probing:
        traced = probed_buckets(self.database.index, query_codes, margins, budget)
        buckets, seen = [], set()
        distances = np.bitwise_count(traced.code ^ query_codes[traced.query_code]).sum(1).tolist()
        for i, distance in enumerate(distances):
            held = traced.item[traced.offsets[i] : traced.offsets[i + 1]].tolist()
            new = [item for item in held if item not in seen]
            seen.update(new)
            code = traced.code[i : i + 1]
            nearest = [
                Neighbour(item, distance, self.database.nearest_row(item, code))
                for item in new[:limit]
            ]
            buckets.append(
                Bucket(
                    code=code.tobytes().hex(),
                    cost=float(traced.cost[i]),
                    distance=distance,
                    region=regions.NAMES[traced.query_code[i]],
                    known=len(held) - len(new),
                    new=len(new),
                    hits=[self._hit(neighbour) for neighbour in nearest],
                )
            )
        return Probing(
            probed=len(buckets),
            nonempty=int((np.diff(traced.offsets) > 0).sum()),
            candidates=len(traced.item),
            photos=len(seen),
            relevant=self._num_relevant(sorted(seen), item),
            buckets=buckets,
        )

    def _num_relevant(self, items: list[int], item: int | None) -> int | None:
        """Returns how many items share a label with another; None if labels are not known."""
        if item is None or not self.database.classes:
            return None
        labels = self.database.labels
        return int((labels[items] & labels[item]).any(1).sum())

    def _hit(self, neighbour: Neighbour) -> Hit:
        item, distance, row = neighbour
        width, height = self.database.size(item)
        return Hit(
            item=item,
            id=str(self.database.ids[item]),
            distance=distance,
            width=width,
            height=height,
            labels=self.database.class_names(item),
            **self._stored_code(item, row).model_dump(),
        )

    def encoded(self, packed: np.ndarray, keep_prob: np.ndarray, query: Query) -> Encoded:
        """Returns the description of one photo's regions.

        Args:
          packed: Packed codes of the regions, uint32 [6 w].
          keep_prob: The policy's probability of keeping each code, [6].
          query: The photo, or the part of it that was encoded.
        """
        num_bits, (left, top, right, bottom) = self.encoder.model.num_bits, query.box
        size = np.array([[right - left, bottom - top]])
        code_set = self.encoder.code_set(packed[None], keep_prob[None], size)
        box = code_set.box[0] + np.array([left, top, left, top])
        code = codes.to_bytes(packed, num_bits)
        differs = np.bitwise_count(code ^ code[:1]).sum(1)
        return Encoded(
            width=query.size[0],
            height=query.size[1],
            box=list(query.box),
            num_bits=num_bits,
            keep_threshold=self.encoder.keep_threshold,
            regions=[
                Region(
                    region=name,
                    box=box[slot].tolist(),
                    code=code[slot].tobytes().hex(),
                    keep_prob=float(code_set.keep_prob[0, slot]),
                    kept=bool(code_set.kept[0, slot]),
                    differs=int(differs[slot]),
                )
                for slot, name in enumerate(regions.NAMES)
            ],
        )

    def stored(self, item: int, box: Box | None = None) -> Query:
        """Returns a photo of the database, or the part of it in a box, as a query.

        Raises:
          Refused: The photo cannot be read, or has no pixel in the box.
        """
        try:
            pixels = self.database.photo(item)
        except ValueError as error:
            raise _not_shown(item, error) from None
        return decoders.query(pixels, self.encoder.image_size, box)

    def example(self, number: int, side: int) -> bytes:
        """Returns an example as a JPEG whose longer side is at most `side` pixels.

        Raises:
          Refused: There is no such example, or it cannot be read.
        """
        if number >= len(self.examples):
            raise Refused(404, f"There is no example {number}; there are {len(self.examples)}.")
        try:
            return self.example_thumbnails.jpeg(number, side)
        except ValueError as error:
            raise _not_shown(number, error) from None

    def thumbnail(self, item: int, side: int) -> bytes:
        """Returns an item's photo as a JPEG whose longer side is at most `side` pixels.

        Raises:
          Refused: The photo cannot be read.
        """
        try:
            return self.thumbnails.jpeg(item, side)
        except ValueError as error:
            raise _not_shown(item, error) from None


def _not_shown(item: int, error: ValueError) -> Refused:
    """Logs why a photo cannot be shown, which may name paths of the machine; returns the answer."""
    logging.warning("photo %d cannot be shown: %s", item, error)
    return Refused(404, f"The photo {item} cannot be shown; the server's log says why.")


def run_database(run: Path, dataset: Dataset | None = None) -> Database:
    """Returns the database of a finished run, with the photos of its data set.

    Args:
      run: The workdir of the run.
      dataset: Its data set; read if it is not given.

    Raises:
      ValueError: The run has no codes, or its data set cannot be read.
    """
    dataset = dataset or read_dataset(read_config(run))
    rows = {name: row for row, name in enumerate(dataset.ids.tolist())}
    read_photo = photo_reader(rows, dataset.read)
    return Database.open(run / "codes" / "database.npz", dataset.classes, read_photo)


def exported_database(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None
) -> Database:
    """Returns the database in a codes file that `mch_jax.export` has written.

    Args:
      path: The codes file.
      images: The folder, tar or list of photos that it was made from, to show them.

    Raises:
      ValueError: The file or the photos cannot be read.
    """
    if images is None:
        return Database.open(path)
    found = {photo.id: photo for photo in sources.find(images)}
    return Database.open(path, read_photo=photo_reader(found, sources.decode))
