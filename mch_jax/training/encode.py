"""Stage 3: the codes of queries and database, several per image of the database (Sec. 4.3)."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int, UInt32

from mch_jax import agent, batched, codes, methods, pairs
from mch_jax.backbones import Backbone
from mch_jax.encoder import FILE, Encoder, RegionOutputs
from mch_jax.files import code_sets, codes_file, made_from, npz, read_json, whole_file, write_json
from mch_jax.methods import base as losses
from mch_jax.models import AlexNet, Policy
from mch_jax.training import logs
from mch_jax.training.run import Run

QUERY_REGIONS = "query_regions.npz"
MADE_FROM = "made_from.json"
BLOCK = 2048  # number of photos after which their codes are saved, the most a killed run loses


def make_encoder(
    config: Any,
    model: AlexNet,
    params: Mapping[str, Any],
    policy_variables: Mapping[str, Any],
    keep_threshold: float | None = None,
    backbone: Backbone | None = None,
    evidence_backbone: Backbone | None = None,
) -> Encoder:
    """Returns the encoder of trained models, with the settings of a config.

    Args:
      config: The run's config.
      model: The base hashing model's network.
      params: Parameters of the base hashing model.
      policy_variables: Variables of the policy. Without any, every code is kept.
      keep_threshold: Smallest keep probability of a code that is kept. Defaults to the config's.
      backbone: The network that stands in for the convolutions, if there is one.
      evidence_backbone: The network whose features the agent tells labels from, if there is one.
    """
    evidence_size = config.agent.get("evidence_size", 0) if evidence_backbone is not None else 0
    return Encoder(
        model=model,
        params=params,
        policy=Policy(tuple(config.agent.widths)) if policy_variables else None,
        policy_variables=policy_variables,
        crop_ratio=config.encode.crop_ratio,
        keep_threshold=config.encode.keep_threshold if keep_threshold is None else keep_threshold,
        image_size=config.dataset.image_size,
        input_size=config.model.input_size,
        select=config.agent.get("select", "each"),
        backbone=backbone,
        evidence_backbone=evidence_backbone,
        evidence_size=evidence_size,
    )


def encode_rows(
    encode: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    region_batches: Callable[[np.ndarray, int], Iterable[np.ndarray]],
    rows: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    directory: Path,
    title: str,
    made_from: str,
) -> tuple[np.ndarray, ...]:
    """Returns what an encoder computes for all regions of photos.

    Results are saved block by block in temporary files, from which a killed run resumes. The caller
    removes their directory when it has saved the results.

    Args:
      encode: A method of the encoder, `encode_regions` or `region_outputs`.
      region_batches: Maps rows and a batch size to the encoder's inputs for these rows, as
        `Run.encoder_batches` does.
      rows: The photos' rows in the data set.
      batch_size: Number of photos that the network is called with.
      directory: Directory of the temporary files.
      title: What is encoded, for their names and the log.
      made_from: Digest of the encoder and the photos. Temporary files of another one are not used.
    """
    blocks = []
    starts = range(0, len(rows), BLOCK)
    for start in logs.progress(
        starts, len(rows), f"codes of the {title}", unit="photos", size=BLOCK
    ):
        path = directory / f"{title}-{start}-{made_from}.npz"
        block = _read_block(path, len(rows[start : start + BLOCK]))
        if block is None:
            batches = region_batches(rows[start : start + BLOCK], batch_size)
            outputs = batched.apply_all(encode, batches, batch_size)
            with whole_file(path) as temporary:
                np.savez(temporary, *outputs)
            block = list(npz.read(path).values())
        blocks.append(block)
    return tuple(np.concatenate(x) for x in zip(*blocks, strict=True))


def _read_block(path: Path, count: int) -> list[np.ndarray] | None:
    """Returns the arrays of a temporary file, or None if it is missing or damaged."""
    try:
        arrays = list(npz.read(path).values())
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        logging.warning("%s is damaged (%s); encoding these photos again", path, error)
        return None
    return arrays if arrays and all(len(x) == count for x in arrays) else None


def true_rewards(
    packed: UInt32[np.ndarray, "n 6 w"],
    labels: UInt32[np.ndarray, "n lw"],
    is_train: Bool[np.ndarray, " n"],
    loss_table: Float[Array, "2 distances"],
) -> Float[np.ndarray, "n 6"]:
    """Returns the reward of keeping each region's code, computed from the images' true labels.

    The report compares the agent's decisions with these. The whole image's reward is 0.

    Args:
      packed: Packed codes of all regions.
      labels: Packed labels of the images.
      is_train: Which images are training images, those that the reward sums over.
      loss_table: Base loss at each distance (`methods.base.loss_table`).
    """
    num_bits, num_train = loss_table.shape[1] - 1, int(is_train.sum())
    train = (packed[is_train, 0].T, labels[is_train].T, np.ones(num_train, np.int32))

    @jax.jit
    def rewards(own, region, labels):
        histogram = agent.reward_histogram(own[:, None], region, labels, *train, num_bits)
        return agent.rewards(histogram, loss_table, num_train)

    slots = range(1, packed.shape[1])
    columns = [rewards(packed[:, 0], packed[:, slot], labels) for slot in slots]
    return np.stack([np.zeros(len(packed), np.float32), *map(np.asarray, columns)], 1)


def encode(run: Run, encoder: Encoder) -> None:
    """Writes the encoder and the codes of queries, training set and database (Sec. 4.3).

    `regions.npz` holds the codes of all regions of the database, kept or not, for the report.
    `query_regions.npz` holds codes and logits of all regions of the queries, for measures that need
    them; the query's code in all other measures is the whole image's. `made_from.json` holds the
    digests of the encoder and of the photos and labels.
    """
    encoder.save(run.workdir / FILE)
    if _recorded(run) != inputs(run):
        # The codes of the earlier inputs must not pass for those of the present ones.
        (run.workdir / "codes" / "database.npz").unlink(missing_ok=True)
        write_json(run.workdir / "codes" / MADE_FROM, inputs(run))
    _encode_queries(run, encoder)
    _encode_database(run, encoder)
    shutil.rmtree(run.workdir / "parts")


def _encode_queries(run: Run, encoder: Encoder) -> None:
    """Writes query_regions.npz, and query.npz with the whole image's code alone (Sec. 4.4)."""
    dataset, rows, num_bits = run.dataset, run.dataset.query, run.config.num_bits
    directory = run.workdir / "codes"
    outputs = RegionOutputs(*_encode_rows(run, encoder.region_outputs, rows, "query-regions"))
    code_set = encoder.code_set(outputs.packed, outputs.keep_prob, dataset.sizes[rows])
    with whole_file(directory / QUERY_REGIONS) as temporary:
        np.savez_compressed(
            temporary,
            codes=codes.to_bytes(outputs.packed, num_bits),
            keep_prob=outputs.keep_prob,
            kept=code_set.kept,
            logits=outputs.logits,
            label_logits=outputs.label_logits,
        )
    whole = codes.CodeSet(*(x[:, :1] for x in code_set))
    file = code_sets.flatten(whole, dataset.ids[rows], dataset.labels[rows], num_bits)
    codes_file.save(directory / "query.npz", file)


def _encode_rows(
    run: Run, encode: Callable[[np.ndarray], tuple[np.ndarray, ...]], rows: np.ndarray, title: str
) -> tuple[np.ndarray, ...]:
    return encode_rows(
        encode,
        run.encoder_batches,
        rows,
        batch_size=run.config.encode.batch_size,
        directory=run.workdir / "parts",
        title=title,
        made_from=made_from.digest(*inputs(run).values()),
    )


def _encode_database(run: Run, encoder: Encoder) -> None:
    """Writes regions.npz, train.npz and, last, database.npz, which marks the stage as done."""
    dataset, rows, num_bits = run.dataset, run.dataset.database, run.config.num_bits
    directory = run.workdir / "codes"
    packed, keep_prob = _encode_rows(run, encoder.encode_regions, rows, "database")
    code_set = encoder.code_set(packed, keep_prob, dataset.sizes[rows])
    ids, labels, is_train = dataset.ids[rows], dataset.labels[rows], np.isin(rows, dataset.train)
    rewards: dict[str, Any] = {"reward": np.zeros(code_set.keep_prob.shape, np.float32)}
    if run.config.method in methods.OBJECTIVES:
        rewards = _rewards(run, code_set.packed, rows, is_train)
    with whole_file(directory / "regions.npz") as temporary:
        np.savez_compressed(
            temporary,
            codes=codes.to_bytes(code_set.packed, num_bits),
            keep_prob=code_set.keep_prob,
            **rewards,
            box=code_set.box,
        )
    train = codes.CodeSet(*(x[is_train] for x in code_set))
    train_file = code_sets.flatten(train, ids[is_train], labels[is_train], num_bits)
    codes_file.save(directory / "train.npz", train_file)
    codes_file.save(directory / "database.npz", code_sets.flatten(code_set, ids, labels, num_bits))


def _rewards(
    run: Run,
    packed: UInt32[np.ndarray, "n 6 w"],
    rows: Int[np.ndarray, " n"],
    is_train: Bool[np.ndarray, " n"],
) -> dict[str, Float[np.ndarray, "n 6"]]:
    """Returns the `true_rewards` of photos by the labels that measure, as `reward`.

    If training had other labels, those of its neighbours, the rewards by these are
    `training_reward`.
    """

    def by(labels, similar_fraction):
        table = losses.loss_table(run.objective, run.config.num_bits, similar_fraction)
        return true_rewards(packed, labels[rows], is_train, table)

    own = by(run.labels, run.similar_fraction)
    if run.neighbours is None or run.neighbours.measures:
        return {"reward": own}
    hidden = pairs.pack_labels(run.dataset.labels)
    fraction = pairs.similar_fraction(hidden[run.dataset.train])
    return {"reward": by(hidden, fraction), "training_reward": own}


def inputs(run: Run) -> dict[str, str]:
    """Returns digests of what the run's codes are made from, by name."""
    return {"encoder": made_from.digest_file(run.workdir / FILE), **run.encoding_inputs}


def read_made_from(workdir: Path) -> dict[str, Any] | None:
    """Returns the digests of what a run's codes were made from, by name.

    Returns None for codes of an earlier version, which have no record.

    Args:
      workdir: Directory of the run.

    Raises:
      ValueError: The file is damaged.
    """
    path = workdir / "codes" / MADE_FROM
    return read_json(path, "run the encode stage again") if path.exists() else None


def _recorded(run: Run) -> dict[str, Any] | None:
    try:
        return read_made_from(run.workdir)
    except ValueError as error:
        logging.warning("%s", error)
        return {}


def _stale(run: Run) -> str:
    """Returns the names of what changed since the run's codes were made; empty if nothing did."""
    recorded, present = _recorded(run), inputs(run)
    if recorded is None:
        logging.warning(
            "%s was written by an earlier version, without a record of what it was made from; "
            "unverified", run.workdir / "codes",
        )  # fmt: skip
        return "" if present["encoder"] else "encoder"
    return made_from.changed(dict.fromkeys(present) | recorded, present)


def is_done(run: Run) -> bool:
    """Returns True if the stage is done for the present photos and labels.

    database.npz is the last file that the stage writes.
    """
    titles = ("query", "train", "regions", "database")
    if not all((run.workdir / "codes" / f"{title}.npz").exists() for title in titles):
        return False
    names = _stale(run)
    if names:
        logging.warning("the %s changed since the codes were made; making them again", names)
    return not names


def check(run: Run) -> None:
    """Raises ValueError if the run's codes were made from something else than the present data."""
    names = _stale(run) if (run.workdir / "codes" / "database.npz").exists() else ""
    if names:
        raise ValueError(
            f"{run.workdir / 'codes'}: the {names} changed since the codes were made; restore the "
            "earlier state, or run the encode stage again"
        )
