"""Stage 4, results.json: written, read, verified against the codes files, and printed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mch_jax import codes, metrics
from mch_jax.evaluation import controls, evaluate, measures, provenance
from mch_jax.files import code_sets, codes_file, read_json, read_npz, schemas, write_json
from mch_jax.files.codes_file import CodeFile
from mch_jax.methods import OBJECTIVES
from mch_jax.query_codes import QueryRegions
from mch_jax.training import encode, neighbours, run, threshold

FILE = "results.json"


def measure_run(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the codes files of a run give: everything in results.json but the name.

    Args:
      workdir: Directory of the run.
      config: Resolved config of the run, as config.json holds it.

    Raises:
      ValueError: A codes file is missing, damaged, or of another code length or data set.
    """
    directory = workdir / "codes"
    titles = ("query", "database", "train")
    query, database, train = (codes_file.load(directory / f"{title}.npz") for title in titles)
    for title, file in (("query", query), ("train", train)):
        came, expected = ((x.num_bits, x.labels.shape[1]) for x in (file, database))
        if came != expected:
            raise ValueError(
                f"{directory / title}.npz has codes of {came[0]} bits and {came[1]} classes, "
                f"database.npz {expected[0]} and {expected[1]}; run the encode stage again"
            )
    ks = [k for k in config["evaluate"]["bucket_k"] if k <= len(database.ids)]
    of_queries = read_query_regions(directory, query)
    logits = None if of_queries is None else of_queries.logits[:, 0]
    base = controls.base_codes(database)
    counts, mch_counts = (evaluate.histogram(query, file) for file in (base, database))
    similarity = {}
    source = neighbours.source(config)
    if source != "labels":
        measures_by = source if neighbours.read(workdir).measures else "labels"
        similarity = {"similarity": {"training": source, "measures": measures_by}}
    results = {
        "dataset": {
            "queries": len(query.ids),
            "database": len(database.ids),
            "train": len(train.ids),
            "classes": query.labels.shape[1],
            "queries_without_relevant": int((~metrics.has_relevant(counts)).sum()),
        },
        **similarity,
        "method": config["method"],
        "num_bits": query.num_bits,
        "seed": config["seed"],
        "chance_map": metrics.chance_map(counts),
        "base": evaluate.measure(query, base, ks, counts, logits),
        "mch": evaluate.measure(query, database, ks, mch_counts, logits),
    }
    if config["method"] in OBJECTIVES:
        results["mch_minus_base"] = evaluate.difference(mch_counts, counts)
        regions = read_regions(directory, database)
        is_train = np.isin(database.ids, train.ids)
        chosen = controls.controls(database, regions, is_train, config["seed"])
        results["controls"] = {"never": results["base"]} | {
            name: evaluate.measure(query, file, ks, logits=logits) for name, file in chosen.items()
        }
        results["oracle_share"] = {
            name: measures.oracle_gain_share(results, name) for name in measures.ORACLES
        }
    calibrated = workdir / threshold.FILE
    if calibrated.exists():
        results["calibration"] = read_json(calibrated, "run the agent stage again")
    if of_queries is not None:
        results["several_query_codes"] = {
            choice: evaluate.measure_several(
                several_codes(query, of_queries, choice),
                database,
                of_queries.chosen(choice).logits,
            )
            for choice in ("agent", "all")
        }
    files, made_from = (query, database, train), encode.read_made_from(workdir)
    return results | {"provenance": provenance.provenance(config, files, made_from)}


def read_regions(directory: Path, database: CodeFile) -> dict[str, np.ndarray]:
    """Returns what regions.npz of a run holds: all regions of the database, kept or not.

    Args:
      directory: Directory of the run's codes.
      database: Codes file of the database.

    Raises:
      ValueError: The file is missing or damaged, or its codes are not those of `database`.
    """
    path = directory / "regions.npz"
    arrays = read_npz(path, "run the encode stage again", schemas.REGIONS)
    _, first = np.unique(database.item, return_index=True)
    if not np.array_equal(arrays["codes"][:, :1], database.codes[first][:, None]):
        raise ValueError(
            f"{path} does not hold the regions of the photos in database.npz; delete it and run "
            "the encode stage again"
        )
    return arrays


def read_query_regions(directory: Path, query: CodeFile) -> QueryRegions | None:
    """Returns codes and logits of the queries' regions, None for a run of an earlier version.

    Args:
      directory: Directory of the run's codes.
      query: Codes file of the queries.

    Raises:
      ValueError: The file is damaged, or its codes are not those of `query`.
    """
    path = directory / encode.QUERY_REGIONS
    if not path.exists():
        return None
    arrays = read_npz(path, "run the encode stage again", schemas.QUERY_REGIONS)
    found = QueryRegions(*(arrays[name] for name in QueryRegions._fields))
    signs = np.packbits(found.logits >= 0, axis=-1, bitorder="little")
    if not np.array_equal(found.codes[:, :1], query.codes[:, None]) or not np.array_equal(
        signs, found.codes
    ):
        raise ValueError(
            f"{path} does not hold the regions of the queries in query.npz; delete it and run the "
            "encode stage again"
        )
    return found


def several_codes(query: CodeFile, of_queries: QueryRegions, choice: str) -> CodeFile:
    """Returns a codes file with several codes of each query, equal ones once.

    Args:
      query: Codes file of the queries with one code each.
      of_queries: Codes and logits of their regions.
      choice: `agent` or `all`.
    """
    chosen = of_queries.chosen(choice)
    code_set = codes.CodeSet(
        codes.from_bytes(chosen.codes, query.num_bits),
        np.ones(chosen.kept.shape, np.float32),
        chosen.kept,
        np.zeros((*chosen.kept.shape, 4), np.int32),
    )
    return code_sets.flatten(code_set, query.ids, query.labels, query.num_bits)


def write_results(workdir: Path, config: Mapping[str, Any], dataset_name: str) -> dict[str, Any]:
    """Measures the codes files of a run, writes results.json and returns what it holds.

    Args:
      workdir: Directory of the run.
      config: Resolved config of the run, as config.json holds it.
      dataset_name: Name of the run's data set, for people.
    """
    results = measure_run(workdir, config)
    results["dataset"] = {"name": dataset_name, **results["dataset"]}
    write_json(workdir / FILE, results)
    return results


def read_results(workdir: Path) -> dict[str, Any]:
    """Returns what results.json of a run holds.

    Raises:
      ValueError: The file does not exist or is damaged.
    """
    return read_json(workdir / FILE, "run the evaluate stage", schemas.RESULTS)


def verify(workdir: Path) -> list[str]:
    """Returns a line for each value of results.json that does not follow from the run's codes.

    The hashes of the config and of the split have to be the same. Versions, device and commit are
    not compared, because this process can have others.

    Raises:
      ValueError: A file of the run is missing or damaged.
    """
    stated = read_results(workdir)
    recomputed = measure_run(workdir, run.read_config(workdir))
    if "mch_minus_base" not in stated:  # written by an earlier version
        recomputed.pop("mch_minus_base", None)
    origin = recomputed["provenance"]
    recomputed["provenance"] = {name: origin[name] for name in ("config_hash", "split_hash")}
    return list(provenance.differences(stated, recomputed))


def text_table(results: Mapping[str, Any]) -> str:
    """Returns the results of a run as lines of text."""
    columns = [measure.key for measure in measures.measured(results)]
    width = 20 if "similarity" in results else 12
    lines = [" " * width + "".join(f"{name:>16}" for name in columns)]
    for choice, row in measures.chosen(results):
        name = {"mch": "MCH"}.get(choice.key, choice.key)
        name = f"  {name}" if choice.is_control else name
        lines.append(f"{name:{width}}" + "".join(f"{row[column]:16.4f}" for column in columns))
    lines.append(f"chance mAP {results['chance_map']:.4f}")
    lines += measures.gain(results, 4)
    lines += measures.notes(results)
    return "\n".join(lines)
