"""The measures of a run and the choices of codes they are taken of: keys, titles and meanings.

The report, the tables, the printed table and README all take these from here. To add a measure,
add its line to MEASURES and its value to `evaluate.measure`; to add a choice of codes, add its line
to CHOICES and its codes to `controls.controls`; to add a cost that F1 is drawn against, add its
line to COSTS and its values to `evaluate.f1_bucket`. Results of an earlier version lack what was
added since, and are shown without it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Below these, the table says that differences mean little.
SMALL_TRAIN, SMALL_QUERIES = 500, 100
# Beyond this ratio of regions kept, the table says that the keep threshold may not fit.
MOST_REGIONS_APART = 1.5


class Measure(NamedTuple):
    """A number that results.json has for every choice of codes.

    Attributes:
      key: Name in results.json.
      title: Name for people.
      digits: Decimals on the page of the report.
      table_digits: Decimals in tables over several runs, which show smaller differences.
      meaning: What it means, in one sentence.
      is_cost: True for what codes cost, False for how well they retrieve.
    """

    key: str
    title: str
    digits: int
    table_digits: int
    meaning: str
    is_cost: bool = False


class Term(NamedTuple):
    """What a name in results.json means.

    Attributes:
      key: Name in results.json.
      title: Name for people.
      meaning: What it means.
    """

    key: str
    title: str
    meaning: str


class Choice(NamedTuple):
    """A way to choose the codes of the database's items.

    Attributes:
      key: Name in results.json, for a control below `controls`.
      title: Name for people.
      note: Which codes an item has.
      is_control: True for a control beside the base model and the agent.
    """

    key: str
    title: str
    note: str
    is_control: bool


class Cost(NamedTuple):
    """What a search costs, counted in `f1_bucket` beside F1.

    Attributes:
      key: Name in `f1_bucket`.
      name: Short name, for the head of a table.
      title: Name for the title of a figure.
      label: Name for the axis of a figure.
    """

    key: str
    name: str
    title: str
    label: str


MEASURES = (
    Measure("map", "mAP", 3, 4, "Mean average precision of ranking the whole database, averaged "
            "exactly over the orders of ties; 1 if all relevant photos come first."),
    Measure("map_asymmetric", "mAP, asymmetric", 3, 4, "Mean average precision of ranking by "
            "asymmetric distance: the sum of the absolute values of the query’s logits over the "
            "bits in which a code differs from it. Ties as for mAP."),
    Measure("map_at_5000", "mAP@5000", 3, 4, "Mean average precision of the first 5,000 photos."),
    Measure("p_at_h0", "P@H=0", 3, 4, "Precision within radius 0: the share of relevant photos "
            "among those with a code equal to the query’s; 0 for an empty bucket."),
    Measure("r_at_h0", "R@H=0", 4, 4, "Recall within radius 0: the share of all relevant photos "
            "that have a code equal to the query’s. Looking into one bucket finds these."),
    Measure("nonempty_at_h0", "Non-empty", 3, 4, "Share of the queries whose own bucket holds a "
            "photo."),
    Measure("p_at_h2", "P@H≤2", 3, 4, "Precision within a Hamming distance of 2 bits."),
    Measure("r_at_h2", "R@H≤2", 4, 4, "Recall within a Hamming distance of 2 bits."),
    Measure("anhc", "ANHC", 2, 2, "Average number of hash codes per photo; equal codes of a photo "
            "count once. This is what MCH costs in memory.", is_cost=True),
    Measure("bytes_per_image", "Bytes", 1, 1, "Bytes per photo of its codes, each with the number "
            "of its item: q / 8 + 4 per code.", is_cost=True),
)  # fmt: skip
MEASURE = {measure.key: measure for measure in MEASURES}

CHANCE = Term("chance_map", "Chance mAP", "Expected mAP of a random ranking.")
F1_BUCKET = Term(
    "f1_bucket",
    "F1-bucket",
    "Mean F1, the harmonic mean of precision and recall, of the K nearest photos, against the "
    "number of buckets looked into to find them: all of them (probed), or only those that hold a "
    "photo (non-empty).",
)

PROBE = Term(
    "probe",
    "At equal buckets",
    "Mean F1, recall and number of codes read (candidates) after a budget of buckets, empty ones "
    "too, looked at by Hamming distance (hamming) or by quantization distance, the sum of the "
    "absolute values of the logits of the flipped bits (gqr).",
)

CHOICES = (
    Choice("base", "Base", "one code per photo", False),
    Choice("mch", "MCH", "the agent chooses", False),
    Choice("never", "Never", "no region", True),
    Choice("always", "Always", "every region", True),
    Choice("random", "Random", "as many codes as MCH, drawn at random", True),
    Choice("oracle", "Oracle", "regions with a positive true reward", True),
    Choice("oracle_ap", "Oracle of AP", "regions that raise the training photos’ average "
           "precision by the true labels, chosen greedily", True),
    Choice("oracle_neighbours", "Oracle of neighbours", "regions with a positive reward by the "
           "neighbours or pairs that training saw", True),
)  # fmt: skip

ORACLES = {"oracle": "the oracle", "oracle_ap": "the AP oracle"}  # controls with true labels

COSTS = (
    Cost("probed", "probed", "buckets probed", "buckets probed, empty ones too"),
    Cost("nonempty", "non-empty", "non-empty buckets", "non-empty buckets looked into"),
)


def measured(results: Mapping[str, Any]) -> tuple[Measure, ...]:
    """Returns the measures that the results of a run have."""
    return tuple(measure for measure in MEASURES if measure.key in results["base"])


def costs(results: Mapping[str, Any]) -> tuple[Cost, ...]:
    """Returns the costs that the results of a run have."""
    return tuple(cost for cost in COSTS if cost.key in results["base"]["f1_bucket"])


def chosen(results: Mapping[str, Any]) -> Iterator[tuple[Choice, Mapping[str, Any]]]:
    """Yields the choices of codes that the results of a run have, each with its measures."""
    for choice in CHOICES:
        found = results.get("controls", {}) if choice.is_control else results
        if choice.key in found:
            yield choice, found[choice.key]


def oracle_gain_share(results: Mapping[str, Any], oracle: str, key: str = "map") -> float | None:
    """Returns the agent's gain over the base as a share of an oracle's gain.

    Args:
      results: Results of one run.
      oracle: Key of the oracle among the controls.
      key: Key of the measure.

    Returns:
      The share, or None where the oracle gains nothing or the results lack it.
    """
    if oracle not in results["controls"]:
        return None
    base = results["base"][key]
    gain = results["controls"][oracle][key] - base
    return (results["mch"][key] - base) / gain if gain > 0 else None


def gain(results: Mapping[str, Any], digits: int) -> list[str]:
    """Returns a sentence on what MCH gains over the base, or none for results without an agent.

    Args:
      results: What results.json holds.
      digits: Digits after the point.
    """
    if "mch_minus_base" not in results:
        return []
    parts = (
        f"{MEASURE[key].title} {row['mean']:+.{digits}f} ± {row['interval']:.{digits}f}"
        for key, row in results["mch_minus_base"].items()
    )
    return [f"MCH minus base (95 % interval over the queries): {', '.join(parts)}."]


def notes(results: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what the measures of a run mean.

    They are about small sets, a calibration that does not carry over, and training without labels.
    """
    return _small_note(results["dataset"]) + _calibration_note(results) + _similarity_note(results)


def _small_note(counts: Mapping[str, Any]) -> list[str]:
    if counts["train"] >= SMALL_TRAIN and counts["queries"] >= SMALL_QUERIES:
        return []
    return [
        f"Only {counts['train']:,} training photos and {counts['queries']:,} queries: a difference "
        "between two rows means little until other seeds and other splits show it, too."
    ]


def _calibration_note(results: Mapping[str, Any]) -> list[str]:
    """Returns a warning if far more or fewer regions are kept than where the threshold was chosen.

    The keep probabilities are then others than those of the photos that the threshold was tried on.
    """
    record = results.get("calibration")
    if not record or record["keep_threshold"] > 1 or "mch" not in results:
        return []
    rows = {row["keep_threshold"]: row for row in record["gains"]}
    expected, found = rows[record["keep_threshold"]]["codes"], results["mch"]["anhc"]
    few, many = sorted((expected - 1, found - 1))
    if many <= MOST_REGIONS_APART * few or many - few <= 0.1:
        return []
    return [
        f"MCH keeps {found:.2f} codes per photo, but kept {expected:.2f} on the training photos "
        "left out, on which the keep threshold was chosen: the gain that was estimated there may "
        "not hold. With more training photos, the two come closer."
    ]


def _similarity_note(results: Mapping[str, Any]) -> list[str]:
    if "similarity" not in results:
        return []
    source, measures = results["similarity"]["training"], results["similarity"]["measures"]
    if source == "neighbours":
        training = "two photos are similar if regions of them are neighbours."
    else:
        training = f"two photos are similar if {source}.csv says so."
    training = f"Training saw no labels: {training}"
    if measures == "labels":
        return [training, "Labels only measure."]
    if source != "neighbours":
        return [training, "Relevant in every measure are these pairs as well."]
    return [
        training,
        "Relevant in every measure are these neighbours as well, because there are no labels: the "
        "measures say how well codes keep neighbours, not how well they find what people look for.",
    ]


def terms(results: Mapping[str, Any] | None = None) -> list[Term]:
    """Returns what the measures and curves in results.json mean.

    Args:
      results: What results.json holds, to leave out measures that it lacks. Defaults to none left
        out.
    """
    found = MEASURES if results is None else measured(results)
    first, *others = (Term(measure.key, measure.title, measure.meaning) for measure in found)
    curves = [F1_BUCKET, PROBE] if results is None or "probe" in results["base"] else [F1_BUCKET]
    return [first, CHANCE, *others, *curves]
