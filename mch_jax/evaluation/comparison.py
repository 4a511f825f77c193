"""Comparisons over the runs of a grid: means, intervals, differences and buckets at equal F1.

Differences are paired by seed, since two choices of codes of one run share the base model, the
regions and the queries. Intervals are Student's at 95 % over seeds; a single seed has none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from mch_jax import methods
from mch_jax.evaluation import results
from mch_jax.evaluation.measures import oracle_gain_share

LEVELS = (0.25, 0.5, 0.75, 0.95)  # shares of the smaller of two curves' best F1

Results = Mapping[str, Any]
Runs = Mapping[tuple[str, int], Sequence[Results]]  # by method and number of bits, seeds ascending


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Attributes:
      mean: Mean over seeds.
      half: Half the width of the interval, NaN for a single seed.
      count: Number of seeds.
    """

    mean: float
    half: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean over seeds with Student's 95 % interval."""
    count = len(values)
    half = float("nan")
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Estimate(float(np.mean(values)), half, count)


def read_runs(root: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Returns the results of the finished runs in a directory, by method and number of bits.

    Each has the directory of its run as `workdir`, beside what results.json holds.

    Args:
      root: Directory of the workdirs of a grid.

    Raises:
      ValueError: There are no finished runs, or they are of several data sets.
    """
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    names = set()
    for path in sorted(root.glob(f"*/{results.FILE}")):
        one = results.read_results(path.parent)
        one["workdir"] = str(path.parent)
        names.add(one["dataset"]["name"])
        found.setdefault((one["method"], one["num_bits"]), []).append(one)
    if not found:
        raise ValueError(f"--root={root} holds no finished run; run mch_jax.grid first")
    if len(names) > 1:
        raise ValueError(
            f"--root={root} holds runs of {', '.join(sorted(names))}; expected one data set"
        )
    for runs in found.values():
        runs.sort(key=lambda one: one["seed"])
    order = list(methods.METHODS)
    return dict(sorted(found.items(), key=lambda entry: (order.index(entry[0][0]), entry[0][1])))


def with_agent(runs: Runs) -> Runs:
    """Returns the runs whose methods have an agent, those with a pair loss."""
    return {key: found for key, found in runs.items() if key[0] in methods.OBJECTIVES}


def code_lengths(runs: Runs) -> list[int]:
    """Returns the numbers of bits, ascending."""
    return sorted({num_bits for _, num_bits in runs})


def method_names(runs: Runs) -> list[str]:
    """Returns the methods, in the order of the runs."""
    return list(dict.fromkeys(method for method, _ in runs))


def difference(runs: Sequence[Results], key: str, control: str) -> Estimate:
    """Returns MCH minus a control in one measure, paired by seed.

    Args:
      runs: Results of one method and number of bits.
      key: Key of the measure.
      control: Key of the control.
    """
    return estimate([one["mch"][key] - one["controls"][control][key] for one in runs])


def oracle_share(runs: Sequence[Results], key: str = "map", oracle: str = "oracle") -> Estimate:
    """Returns the agent's gain over the base as a share of an oracle's gain.

    The mean is NaN where the oracle of a run gains nothing.

    Args:
      runs: Results of one method and number of bits.
      key: Key of the measure.
      oracle: Key of the oracle among the controls.
    """
    shares = [oracle_gain_share(one, oracle, key) for one in runs]
    return estimate([float("nan") if share is None else share for share in shares])


def buckets_at(curve: Mapping[str, Sequence[int | float]], cost: str, f1: float) -> float:
    """Returns the number of buckets visited to reach an F1, log-linear between a curve's points.

    Args:
      curve: `f1_bucket` of a run.
      cost: Key of the cost, such as `probed`.
      f1: F1, no larger than the curve's best. Below the first point, that point's number counts.
    """
    last = int(np.argmax(curve["f1"])) + 1
    heights = np.maximum.accumulate(curve["f1"][:last])
    logs = np.log(np.maximum(curve[cost][:last], 1))
    return float(np.exp(np.interp(f1, heights, logs)))


def bucket_ratios(runs: Sequence[Results], cost: str) -> Float[np.ndarray, " levels"]:
    """Returns the base's buckets over MCH's at equal F1, geometric means over seeds.

    The F1 are LEVELS times the smaller of the two curves' best.

    Args:
      runs: Results of one method and number of bits.
      cost: Key of the cost, such as `probed`.
    """
    logs = []
    for one in runs:
        base, mch = one["base"]["f1_bucket"], one["mch"]["f1_bucket"]
        best = min(max(base["f1"]), max(mch["f1"]))
        logs.append(
            [
                np.log(buckets_at(base, cost, level * best) / buckets_at(mch, cost, level * best))
                for level in LEVELS
            ]
        )
    return np.exp(np.mean(logs, axis=0))
