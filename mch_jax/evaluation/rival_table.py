"""The fair comparison of a finished run: several codes against every rival at equal cost.

All rows share the features and logits of one base model. The orders of the buckets are those of
`equal_cost`, the rivals those of `rivals` and `classifier`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mch_jax import batched, codes, pairs, query_codes
from mch_jax.agent import evidence
from mch_jax.encoder import FILE as ENCODER
from mch_jax.encoder import Encoder, RegionOutputs
from mch_jax.evaluation import asymmetric, classifier, equal_cost, rivals
from mch_jax.evaluation.equal_cost import BUDGETS, Found, Relevance
from mch_jax.files import codes_file, whole_file, write_json
from mch_jax.index import BucketIndex
from mch_jax.query_codes import QueryRegions
from mch_jax.training import claims, encode, logs, run
from mch_jax.training.streams import Stream, generator

FILE, ARRAYS = "rivals.json", "rivals.npz"
_DIFFERING = 0.01  # share of query codes that may differ from the run's, from rounding

# Name of each row, the database's codes, the query's codes, and the order of the buckets.
ROWS = (
    ("base_hamming", "base", "one", "hamming"),
    ("base_gqr", "base", "one", "gqr"),
    ("base_gqr_agent_query", "base", "agent", "gqr"),
    ("base_gqr_all_query", "base", "all", "gqr"),
    ("mch_hamming", "mch", "one", "hamming"),
    ("mch_gqr", "mch", "one", "gqr"),
    ("mch_gqr_agent_query", "mch", "agent", "gqr"),
    ("mch_gqr_all_query", "mch", "all", "gqr"),
    ("spill_gqr", "spill", "one", "gqr"),
    ("surest_gqr", "surest", "one", "gqr"),
    ("surest_labels_gqr", "surest_labels", "one", "gqr"),
    ("random_gqr", "random", "one", "gqr"),
    ("medoid_gqr", "medoid", "one", "gqr"),
    ("coverage_gqr", "coverage", "one", "gqr"),
    ("expected_gqr", "expected", "one", "gqr"),
    ("always_gqr", "always", "one", "gqr"),
    ("always_gqr_all_query", "always", "all", "gqr"),
)


class Material(NamedTuple):
    """What the base model of a run computes for the queries and the database.

    Attributes:
      queries: Outputs for the regions of the queries.
      database: Outputs for the regions of the database's photos.
      query_labels: Multi-hot labels of the queries, for relevance.
      labels: Multi-hot labels of the database's photos, for relevance.
      is_train: Which photos of the database are training photos.
      train_labels: Multi-hot labels of the training photos.
      classes: Names of the classes.
      encoder: The run's encoder.
      seed: Seed of the run.
    """

    queries: RegionOutputs
    database: RegionOutputs
    query_labels: UInt8[np.ndarray, "m c"]
    labels: UInt8[np.ndarray, "n c"]
    is_train: Bool[np.ndarray, " n"]
    train_labels: UInt8[np.ndarray, "t c"]
    classes: Sequence[str]
    encoder: Encoder
    seed: int

    @property
    def num_bits(self) -> int:
        """Code length q."""
        return self.encoder.model.num_bits


class FlatCodes(NamedTuple):
    """Codes of a database as a flat list.

    Attributes:
      codes: Packed codes.
      item: Item of each code, ascending.
    """

    codes: UInt8[np.ndarray, "c bytes"]
    item: Int[np.ndarray, " c"]


class Row(NamedTuple):
    """One way to search, measured.

    Attributes:
      found: What is found within each budget.
      average_precision: Of each query with a relevant item: by Hamming distance for `hamming`, by
        asymmetric distance for `gqr`, by label probabilities for the classifier.
      codes_per_image: Codes, or entries of inverted lists, per image of the database.
      bytes_per_image: Bytes per image of the database that the index takes.
    """

    found: Found
    average_precision: Float[np.ndarray, " counted"]
    codes_per_image: float
    bytes_per_image: float


def read_material(workdir: Path, backbone: str | None = None) -> Material:
    """Returns the outputs of a finished run's base model, computed from its features.

    Args:
      workdir: Directory of a finished run. Its data set has to be available.
      backbone: The run's backbone, which has to be given if it is a Python function.

    Raises:
      ValueError: The run is not finished, or the encoder does not give the run's codes.
    """
    query_file = codes_file.load(workdir / "codes" / "query.npz")
    this = run.reopen(workdir, backbone)
    if this.neighbours is not None and not this.neighbours.measures:
        raise ValueError(
            f"{workdir} was trained without its labels, from which the classifier and other rivals "
            "learn; expected a run with config.similarity.source = labels"
        )
    encode.check(this)
    encoder, dataset = Encoder.load(workdir / ENCODER), this.dataset
    size = this.config.encode.batch_size

    def outputs(rows: np.ndarray, title: str) -> RegionOutputs:
        batches = this.encoder_batches(rows, size)
        batches = logs.progress(batches, len(rows), title, unit="photos", size=size)
        return batched.apply_all(encoder.region_outputs, batches, size)

    queries = outputs(dataset.query, "outputs of the queries")
    own = codes.to_bytes(queries.packed[:, 0], query_file.num_bits)
    if own.shape != query_file.codes.shape or (
        (own != query_file.codes).any(1).mean() > _DIFFERING
    ):
        raise ValueError(
            f"{workdir / 'codes'} holds other codes than {workdir / 'encoder.npz'} gives; expected "
            "a run whose data set and features are unchanged, run the encode stage again"
        )
    is_train = np.isin(dataset.database, dataset.train)
    labels = dataset.labels[dataset.database]
    return Material(
        queries=queries,
        database=outputs(dataset.database, "outputs of the database"),
        query_labels=dataset.labels[dataset.query],
        labels=labels,
        is_train=is_train,
        train_labels=labels[is_train],
        classes=dataset.classes,
        encoder=encoder,
        seed=this.config.seed,
    )


def relevance(material: Material) -> Relevance:
    """Returns which photos of the database are relevant to which queries."""
    query_words, words = (
        pairs.pack_labels(labels) for labels in (material.query_labels, material.labels)
    )
    counts = [(words & query[None]).any(1).sum() for query in query_words]
    return Relevance(query_words, words, np.array(counts, np.int64))


def flat(material: Material, kept: Bool[np.ndarray, "n t"]) -> FlatCodes:
    """Returns the kept codes of the database as a flat list, equal codes of a photo once."""
    packed = material.database.packed
    item, slot = np.nonzero(kept & rivals.distinct(packed))
    return FlatCodes(codes.to_bytes(packed[item, slot], material.num_bits), item)


def queries(material: Material, choice: str) -> QueryRegions:
    """Returns the queries' codes: `one`, those that the `agent` keeps, or `all` six."""
    return material.encoder.query_regions(material.queries).chosen(choice)


def databases(material: Material) -> dict[str, FlatCodes]:
    """Returns the database's codes under the agent's choice and each rival's."""
    outputs = material.database
    packed, logits, label_logits = outputs.packed, outputs.logits, outputs.label_logits
    candidates = rivals.distinct(packed)
    base = np.arange(packed.shape[1])[None] == np.zeros((len(packed), 1), int)
    mch = candidates & (base | (outputs.keep_prob >= material.encoder.keep_threshold))
    counts = mch.sum(1)
    rng = generator(material.seed, Stream.RANDOM_CONTROL)
    chosen = {
        "base": base,
        "mch": mch,
        "surest": rivals.surest(logits, candidates, counts),
        "random": rivals.random(rng, candidates, counts),
        "medoid": rivals.medoid(packed, candidates, counts),
        "coverage": rivals.coverage(packed, candidates, counts),
        "always": candidates,
    }
    if label_logits.shape[2]:
        chosen["surest_labels"] = rivals.surest_labels(label_logits, candidates, counts)
    made_from = material.encoder.policy_variables.get("evidence")
    if made_from is not None:
        reference = evidence.Reference(**made_from["reference"])
        calibration = made_from["calibration"]
        chosen["expected"] = rivals.expected_reward(packed, label_logits, calibration, reference)
    found = {name: flat(material, kept) for name, kept in chosen.items()}
    own = codes.to_bytes(packed[:, 0], material.num_bits)
    found["spill"] = FlatCodes(*rivals.spill(own, logits[:, 0], counts))
    return found


def searched(
    material: Material, database: FlatCodes, query: QueryRegions, order: str, relevant: Relevance
) -> Row:
    """Returns the measures of a search for buckets in one of the orders of `equal_cost`."""
    num_bits, num_images = material.num_bits, len(material.labels)
    logits = query.logits
    if order == "hamming":
        logits = np.where(logits < 0, -1, 1).astype(np.float32)
    index = BucketIndex.build(database.codes, database.item, num_bits)
    return Row(
        equal_cost.probed(index, query.codes, np.abs(logits), relevant),
        asymmetric.average_precision(
            logits, database.codes, database.item, material.query_labels, material.labels
        ),
        len(database.item) / max(num_images, 1),
        equal_cost.bytes_per_image(len(database.item), num_images, num_bits),
    )


def classified(material: Material, relevant: Relevance) -> Row:
    """Returns the measures of inverted lists of predicted labels, without codes."""
    query, database = material.queries, material.database
    if query.label_logits.shape[2]:
        asked, stored = (classifier.probabilities(x.label_logits[:, 0]) for x in (query, database))
    else:
        train = material.is_train
        whole = [x.logits[:, 0] for x in (query, database)]
        asked, stored = classifier.fitted(whole[1][train], material.train_labels, whole)
    members = classifier.lists(stored)
    return Row(
        classifier.probed(asked, members, relevant),
        classifier.average_precision(asked, stored, material.query_labels, material.labels),
        members.sum() / max(len(members), 1),
        equal_cost.ITEM_BYTES * members.sum() / max(len(members), 1),
    )


def everything(material: Material, relevant: Relevance) -> Row:
    """Returns the measures of returning the whole database to every query, in random order."""
    num_queries, num_images = len(material.query_labels), len(material.labels)
    offsets = np.arange(num_queries + 1) * num_images
    item = np.tile(np.arange(num_images), num_queries)
    one = equal_cost.found(relevant, [offsets], [item], [np.diff(offsets)])
    return Row(
        Found(*(np.repeat(x, len(BUDGETS), 0) for x in one)),
        asymmetric.ranked(
            lambda rows: np.zeros((len(material.query_labels[rows]), num_images)),
            material.query_labels,
            material.labels,
        ),
        0.0,
        0.0,
    )


def rows(material: Material, long: Material | None = None) -> dict[str, Row]:
    """Returns every row of the comparison.

    Args:
      material: Outputs of a run.
      long: Outputs of the run with codes of twice the length, where there is one.
    """
    relevant, chosen = relevance(material), databases(material)
    asked = {choice: queries(material, choice) for choice in query_codes.CHOICES}
    wanted = [row for row in ROWS if row[1] in chosen]
    found = {
        name: searched(material, chosen[database], asked[query], order, relevant)
        for name, database, query, order in logs.progress(wanted, len(wanted), "rivals")
    }
    if long is not None:
        base = flat(long, np.arange(long.database.packed.shape[1])[None] == np.zeros((1, 1), int))
        found["long_gqr"] = searched(long, base, queries(long, "one"), "gqr", relevant)
    found["classifier"] = classified(material, relevant)
    return found | {"everything": everything(material, relevant)}


def find_long(workdir: Path) -> Path | None:
    """Returns the finished run beside a run that differs only in codes of twice the length."""

    def settings(path: Path) -> dict[str, Any]:
        config = run.read_config(path)
        return {k: v for k, v in config.items() if k not in ("cache_dir", "tensorboard", "wandb")}

    own = settings(workdir)
    wanted = own | {"num_bits": 2 * own["num_bits"]}
    for path in sorted(workdir.resolve().parent.glob("*/codes/database.npz")):
        other = path.parents[1]
        if (other / "config.json").exists() and settings(other) == wanted:
            return other
    return None


def of_classes(material: Material, classes: Sequence[str]) -> Material:
    """Returns the outputs with relevance by some of the classes alone.

    Args:
      material: Outputs of a run.
      classes: Names of the classes by which photos are relevant to each other; all if empty.

    Raises:
      ValueError: There is no such class.
    """
    wrong = [name for name in classes if name not in material.classes]
    if wrong:
        raise ValueError(
            f"--classes has '{wrong[0]}', expected names among {', '.join(material.classes)}"
        )
    counted = np.isin(material.classes, classes or material.classes)[None]
    return material._replace(
        query_labels=np.where(counted, material.query_labels, 0),
        labels=np.where(counted, material.labels, 0),
    )


def compare(
    workdir: Path,
    long: Path | None = None,
    classes: Sequence[str] = (),
    backbone: str | None = None,
) -> dict[str, Any]:
    """Writes rivals.json and rivals.npz of a finished run and returns what rivals.json holds.

    rivals.npz has F1, recall and candidates of each row, budget and query, for paired intervals.

    Args:
      workdir: Directory of a finished run.
      long: Directory of the run with codes of twice the length. Defaults to the one beside it, if
        there is one.
      classes: Names of the classes by which photos are relevant; all by default. For others, the
        files are called rivals-classes.json and rivals-classes.npz.
      backbone: The runs' backbone, which has to be given if it is a Python function.

    Raises:
      ValueError: A run is not finished or is in use by another process, `long` has codes of another
        length or another split, or there is no such class.
    """
    codes_file.load(workdir / "codes" / "query.npz")  # missing in a directory that is no run
    with claims.claimed(workdir):
        return _compare(workdir, long, classes, backbone)


def _compare(
    workdir: Path, long: Path | None, classes: Sequence[str], backbone: str | None
) -> dict[str, Any]:
    """Compares the rows of a run that this process has claimed."""
    material = read_material(workdir, backbone)
    long = find_long(workdir) if long is None else long
    other = None if long is None else read_material(long, backbone)
    if other is not None:
        _check_long(material, other, long)
    found = rows(
        of_classes(material, classes), None if other is None else of_classes(other, classes)
    )
    suffix = "-classes" if classes else ""
    arrays = {
        f"{name}/{measure}": values.astype(np.int64 if measure == "candidates" else np.float32)
        for name, row in found.items()
        for measure, values in row.found._asdict().items()
    }
    with whole_file((workdir / ARRAYS).with_stem(f"rivals{suffix}")) as temporary:
        np.savez_compressed(temporary, **arrays)
    result = {"budget": list(BUDGETS), "rows": {name: summary(x) for name, x in found.items()}}
    write_json((workdir / FILE).with_stem(f"rivals{suffix}"), result)
    return result


def _check_long(material: Material, other: Material, path: Path | None) -> None:
    same = np.array_equal(material.labels, other.labels) and np.array_equal(
        material.query_labels, other.query_labels
    )
    if not same or other.num_bits != 2 * material.num_bits:
        raise ValueError(
            f"--long={path} has codes of {other.num_bits} bits"
            f"{'' if same else ' and another data set or split'}; expected a run of the same data "
            f"set and seed with {2 * material.num_bits} bits"
        )


def summary(row: Row) -> dict[str, Any]:
    """Returns the means of a row over the queries, as rivals.json has them."""
    precision = row.average_precision
    return equal_cost.means(row.found) | {
        "map": float(precision.mean()) if len(precision) else 0.0,
        "codes_per_image": row.codes_per_image,
        "bytes_per_image": row.bytes_per_image,
    }


def text_table(result: Mapping[str, Any]) -> str:
    """Returns the comparison as lines of text: F1, then candidates read, at each budget."""
    budgets: Sequence[int] = result["budget"]
    heads = [f"F1@{x}" for x in budgets] + [f"read@{x}" for x in budgets]
    lines = [f"{'':22}" + "".join(f"{x:>10}" for x in (*heads, "mAP", "codes", "bytes"))]
    for name, row in result["rows"].items():
        cells = [f"{x:.4f}" for x in row["f1"]] + [f"{x:,.0f}" for x in row["candidates"]]
        cells += [f"{row['map']:.4f}", f"{row['codes_per_image']:.2f}"]
        lines.append(
            f"{name:22}" + "".join(f"{x:>10}" for x in (*cells, f"{row['bytes_per_image']:.1f}"))
        )
    return "\n".join(lines)


def as_json(result: Mapping[str, Any]) -> str:
    """Returns the comparison as one line of JSON."""
    return json.dumps(result)
