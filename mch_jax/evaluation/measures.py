"""The measures of a run and the choices of codes they are taken of: keys, titles and meanings.

The report, the tables, the printed table and README all take these from here. To add a measure,
add its line to MEASURES and its value to `evaluate.measure`; to add a choice of codes, add its line
to CHOICES and its codes to `controls.controls`; to add a cost that F1 is drawn against, add its
line to COSTS and its values to `evaluate.f1_bucket`. Results of an earlier version lack what was
added since, and are shown without it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


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


class Choice(NamedTuple):
    """A way to choose the codes of the database's images.

    Attributes:
      key: Name in results.json, for a control below `controls`.
      title: Name for people.
      note: Which codes an image has.
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
    Measure("map", "mAP", 3, 4, "mean average precision of the whole ranking: how far up the "
            "relevant images stand, 1 when all of them come first."),
    Measure("map_at_5000", "mAP@5000", 3, 4, "the same for the first 5,000 images only."),
    Measure("p_at_h0", "P@H=0", 3, 4, "the share of relevant images among those that have a code "
            "equal to the query’s; an empty bucket counts as 0."),
    Measure("r_at_h0", "R@H=0", 4, 4, "the share of all relevant images that have a code equal to "
            "the query’s: what one look into the hash table finds."),
    Measure("nonempty_at_h0", "Non-empty", 3, 4, "the share of queries whose code some image has "
            "too."),
    Measure("p_at_h2", "P@H≤2", 3, 4, "precision among the images within two bits of the query."),
    Measure("r_at_h2", "R@H≤2", 4, 4, "recall within two bits of the query."),
    Measure("anhc", "ANHC", 2, 2, "average number of hash codes an image, equal codes of one image "
            "counted once: what MCH pays in memory.", is_cost=True),
)  # fmt: skip
MEASURE = {measure.key: measure for measure in MEASURES}

CHANCE = "chance_map", "Chance mAP", (
    "what a random ranking would score; a mAP says little without it."
)  # fmt: skip
F1_BUCKET = "f1_bucket", "F1-bucket", (
    "the harmonic mean of precision and recall of the K nearest images, against the buckets of the "
    "hash table looked into to find them."
)  # fmt: skip

CHOICES = (
    Choice("base", "Base", "one code an image", False),
    Choice("mch", "MCH", "the agent chooses", False),
    Choice("never", "Never", "keep no region", True),
    Choice("always", "Always", "keep every region", True),
    Choice("random", "Random", "as many as MCH, drawn by lot", True),
    Choice("oracle", "Oracle", "what truly helps; looks at labels", True),
)

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
