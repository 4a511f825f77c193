"""Stage 4: how well the codes retrieve, and the controls beside the learned agent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mch_jax import codes, metrics, pairs
from mch_jax.evaluation import provenance
from mch_jax.files import checkpoint, codes_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BINOMIALS, to_words
from mch_jax.kernels import index_kernels, metric_kernels
from mch_jax.methods import OBJECTIVES
from mch_jax.training import run
from mch_jax.training.run import Run
from mch_jax.training.streams import Stream, generator


def histogram(
    query: CodeFile, database: CodeFile, threads: int | None = None
) -> Int[np.ndarray, "m distances 2"]:
    """Returns items of the database per distance from each query, by a label in common.

    Args:
      query: codes of the queries.
      database: codes of the database; an item counts at its nearest code.
      threads: at most so many; by default one a core.
    """
    queries = codes.from_bytes(query.codes, query.num_bits)
    query_labels, labels = (pairs.pack_labels(file.labels) for file in (query, database))
    counts = np.zeros((len(queries), query.num_bits + 1, 2), np.int64)
    for items, packed in codes.by_number(database):
        counts += metrics.label_histogram(
            queries, packed, query_labels, np.ascontiguousarray(labels[items].T),
            query.num_bits, threads=threads,
        )  # fmt: skip
    return counts


def f1_bucket(
    query: CodeFile,
    database: CodeFile,
    counts: Int[np.ndarray, "m distances 2"],
    ks: Sequence[int],
    threads: int | None = None,
) -> dict[str, list[int | float]]:
    """Returns mean F1 of the k nearest images and the buckets that Algorithm 1 visits for them.

    Buckets are counted from combinatorics, in one pass over the codes for every k; none are
    enumerated.

    Args:
      query: codes of the queries.
      database: codes of the database.
      counts: their `histogram`.
      ks: numbers of nearest images, at most as many as there are.
      threads: at most so many; by default one a core.
    """
    counted = metrics.has_relevant(counts)
    probed, nonempty = buckets_visited(
        query.codes[counted], database, counts[counted].sum(2), ks, threads
    )
    queries = max(int(counted.sum()), 1)
    return {
        "k": list(ks),
        "f1": [metrics.f1_at(counts, k) for k in ks],
        "probed": (probed.sum(0) / queries).tolist(),
        "nonempty": (nonempty.sum(0) / queries).tolist(),
    }


def buckets_visited(
    queries: UInt8[np.ndarray, "m bytes"],
    database: CodeFile,
    counts: Int[np.ndarray, "m distances"],
    ks: Sequence[int],
    threads: int | None = None,
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Returns the buckets that Algorithm 1 looks at up to the k-th image, and those not empty.

    Args:
      queries: one code a query.
      database: codes of the database.
      counts: its images per distance from each query.
      ks: numbers of images, at most as many as there are.
      threads: at most so many; by default one a core.
    """
    ordered, place = np.unique(np.asarray(ks, np.int64), return_inverse=True)
    probed, nonempty = (np.zeros((len(queries), len(ordered)), x) for x in (np.float64, np.int64))
    if len(ordered):
        words = to_words(database.codes, database.num_bits)
        order = np.argsort(words)
        buckets = index_kernels.distinct(words[order], database.item[order].astype(np.uint32))
        words, within = to_words(queries, database.num_bits), counts.cumsum(1)

        def run(rows: slice) -> None:
            metric_kernels.visits(
                *buckets, words[rows], within[rows], ordered, BINOMIALS, probed[rows],
                nonempty[rows],
            )  # fmt: skip

        metrics.in_threads(run, len(queries), threads)
    return probed[:, place], nonempty[:, place]


def measures(
    query: CodeFile,
    database: CodeFile,
    ks: list[int],
    counts: Int[np.ndarray, "m distances 2"] | None = None,
) -> dict[str, Any]:
    """Returns every measure of one set of database codes; the rules are those of `metrics`.

    Args:
      query: codes of the queries.
      database: codes of the database.
      ks: numbers of nearest images to take F1 of.
      counts: their `histogram`, where it is there already.
    """
    counts = histogram(query, database) if counts is None else counts
    ball, larger = (metrics.within_radius(counts, radius) for radius in (0, 2))
    return {
        "map": metrics.mean_average_precision(counts),
        "map_at_5000": metrics.mean_average_precision(counts, 5000),
        "p_at_h0": ball.precision,
        "r_at_h0": ball.recall,
        "nonempty_at_h0": ball.nonempty,
        "p_at_h2": larger.precision,
        "r_at_h2": larger.recall,
        "anhc": metrics.average_number_of_codes(database.item, len(database.ids)),
        "f1_bucket": f1_bucket(query, database, counts, ks),
    }


def with_kept(database: CodeFile, regions: dict[str, np.ndarray], kept: Bool[np.ndarray, "n t"]):
    """Returns the codes file of the same images with other codes kept."""
    code_set = codes.CodeSet(
        codes.from_bytes(regions["codes"], database.num_bits),
        regions["keep_prob"],
        kept,
        regions["box"],
    )
    return codes.flatten(code_set, database.ids, database.labels, database.num_bits)


def random_kept(
    regions: dict[str, np.ndarray], num_bits: int, num_codes: int, seed: int
) -> Bool[np.ndarray, "n t"]:
    """Returns distinct codes kept at random, about as many as the agent kept."""
    packed = jnp.asarray(codes.from_bytes(regions["codes"], num_bits))
    distinct = np.asarray(codes.first_of_equals(packed, jnp.ones(packed.shape[:2], bool)))
    rate = (num_codes - len(distinct)) / max(distinct.sum() - len(distinct), 1)
    kept = distinct & (generator(seed, Stream.RANDOM_CONTROL).random(distinct.shape) < rate)
    kept[:, 0] = True
    return kept


def controls(
    query: CodeFile, database: CodeFile, directory: Path, seed: int, ks: list[int]
) -> dict[str, Any]:
    """Returns the measures of keeping all regions' codes, some at random, the right ones.

    Keeping none is the base. The oracle keeps a code where its true reward, by the image's own
    labels, is positive.
    """
    regions = checkpoint.read_npz(directory / "regions.npz", "run the encode stage again")
    never = np.zeros(regions["keep_prob"].shape, bool)
    never[:, 0] = True
    choices = {
        "always": np.ones_like(never),
        "random": random_kept(regions, database.num_bits, len(database.item), seed),
        "oracle": never | (regions["reward"] > 0),
    }
    return {
        name: measures(query, with_kept(database, regions, kept), ks)
        for name, kept in choices.items()
    }


def base_codes(database: CodeFile) -> CodeFile:
    """Returns the whole images' codes alone."""
    _, first = np.unique(database.item, return_index=True)
    return database._replace(
        codes=database.codes[first],
        item=database.item[first],
        keep_prob=database.keep_prob[first],
        box=database.box[first],
    )


def measure(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the codes files of a run say: everything in results.json but the name.

    Args:
      workdir: of the run.
      config: of the run, resolved, as config.json holds it.
    """
    directory = workdir / "codes"
    titles = ("query", "database", "train")
    query, database, train = (codes_file.load(directory / f"{t}.npz") for t in titles)
    for title, file in (("query", query), ("train", train)):
        came, expected = ((x.num_bits, x.labels.shape[1]) for x in (file, database))
        if came != expected:
            raise ValueError(
                f"{directory / title}.npz has codes of {came[0]} bits and {came[1]} classes, "
                f"database.npz {expected[0]} and {expected[1]}; run the encode stage again"
            )
    ks = [k for k in config["evaluate"]["bucket_k"] if k <= len(database.ids)]
    single = base_codes(database)
    counts = histogram(query, single)
    results = {
        "dataset": {
            "queries": len(query.ids),
            "database": len(database.ids),
            "train": len(train.ids),
            "classes": query.labels.shape[1],
            "queries_without_relevant": int((~metrics.has_relevant(counts)).sum()),
        },
        "method": config["method"],
        "num_bits": query.num_bits,
        "seed": config["seed"],
        "chance_map": metrics.chance_map(counts),
        "base": measures(query, single, ks, counts),
        "mch": measures(query, database, ks),
    }
    if config["method"] in OBJECTIVES:
        chosen = controls(query, database, directory, config["seed"], ks)
        results["controls"] = {"never": results["base"], **chosen}
    files = (query, database, train)
    return results | {"provenance": provenance.provenance(config, files)}


def evaluate(this: Run) -> dict[str, Any]:
    """Measures the run's codes files, writes results.json and returns what it holds."""
    results = measure(this.workdir, this.resolved)
    results["dataset"] = {"name": this.dataset.name, **results["dataset"]}
    checkpoint.write_json(this.workdir / "results.json", results)
    return results


def verify(workdir: Path) -> list[str]:
    """Returns what results.json of a run says otherwise than its codes and config.json.

    Versions, device and commit may be others here; the hashes of config and split may not.

    Raises:
      ValueError: a file of the run is missing or damaged.
    """
    stated = read(workdir)
    recomputed = measure(workdir, run.read_config(workdir))
    origin = recomputed["provenance"]
    recomputed["provenance"] = {name: origin[name] for name in ("config_hash", "split_hash")}
    return list(provenance.differences(stated, recomputed))


def table(results: dict[str, Any]) -> str:
    """Returns the results as lines of text for people."""
    columns = (
        "map",
        "map_at_5000",
        "p_at_h0",
        "r_at_h0",
        "nonempty_at_h0",
        "p_at_h2",
        "r_at_h2",
        "anhc",
    )
    rows = {"base": results["base"], "MCH": results["mch"]}
    rows |= {f"  {name}": row for name, row in results.get("controls", {}).items()}
    lines = [f"{'':10}" + "".join(f"{name:>15}" for name in columns)]
    lines += [
        f"{name:10}" + "".join(f"{row[column]:15.4f}" for column in columns)
        for name, row in rows.items()
    ]
    lines.append(f"chance mAP {results['chance_map']:.4f}")
    return "\n".join(lines)


def read(workdir: Path) -> dict[str, Any]:
    """Returns results.json of a run.

    Raises:
      ValueError: it is not there yet, or damaged.
    """
    return checkpoint.read_json(workdir / "results.json", "run the evaluate stage")
