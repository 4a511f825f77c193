"""The model card: one page of Markdown in a run's folder, for whoever finds the folder later.

It says what the model is, what it was trained on and therefore knows, how well it retrieves, how to
use it, and what it should not be used for (Mitchell et al., "Model Cards for Model Reporting", FAT*
2019). It holds no number that results.json does not hold.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mch_jax.data import Dataset
from mch_jax.evaluation.measures import CHANCE, measured
from mch_jax.files.text import printable
from mch_jax.files.whole import whole_file
from mch_jax.report.markup import show
from mch_jax.report.run_files import RunFiles

FILE = "model_card.md"
_PROVENANCE = {
    "config_hash": "Digest of the config",
    "split_hash": "Digest of photos and splits",
    "commit": "Commit of the program",
}


def _escaped(text: object) -> str:
    """Returns text from a config or a data set that Markdown shows as it is, in one line."""
    return "".join("\\" + c if c in "\\`*_{}[]()<>#+-!|~$" else c for c in printable(str(text)))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _network(config: Mapping[str, Any]) -> str:
    """Returns a sentence on the network that turns photos into features."""
    model = config["model"]
    if model.get("features"):
        return "features of another network, from a file; the encoder cannot encode photos itself"
    if model.get("backbone"):
        trained = ", trained further" if config["base"]["train_conv"] else ""
        return f"features of the backbone {_escaped(model['backbone'])}{trained}"
    weights = _escaped(Path(model["weights"]).name) if model["weights"] else "none, random numbers"
    trained = "trained further" if config["base"]["train_conv"] else "kept fixed"
    return (
        f"AlexNet at {model['input_size']} pixels, initial weights: {weights}; convolutions "
        f"{trained}"
    )


def text(dataset: Dataset, files: RunFiles, verdict: str) -> str:
    """Returns the model card of a run.

    Args:
      dataset: Data set of the run.
      files: What the run's folder holds.
      verdict: The report's sentence on what several codes change.
    """
    config, results = files.config, files.results
    provenance = results.get("provenance", {})
    name = f"{results['method'].upper()}, {results['num_bits']} bits, {_escaped(dataset.name)}"
    facts = [
        ("Base model", f"{results['method'].upper()}, {results['num_bits']} bits per code"),
        ("Network", _network(config)),
        ("Codes per photo", f"{results['mch']['anhc']:.2f} on average, at most six"),
        (
            "Photos",
            f"{_escaped(dataset.name)}: {len(dataset.train):,} to train, "
            f"{len(dataset.database):,} in the database, {len(dataset.query):,} queries",
        ),
        ("Seed", str(results["seed"])),
        *(
            (title, f"`{provenance[key]}`")
            for key, title in _PROVENANCE.items()
            if provenance.get(key)
        ),
    ]
    measures = [
        [m.title, show(results["base"][m.key], m.digits), show(results["mch"][m.key], m.digits)]
        for m in measured(results)
    ]
    classes = ", ".join(map(_escaped, dataset.classes)) or "none"
    return "\n".join(
        [
            f"# {name}",
            "",
            "An encoder that turns a photo into binary codes, one for the whole photo and one for "
            "each crop that an agent keeps, and a database of such codes (Multiple Code Hashing, "
            "arXiv 2008.01503).",
            "",
            _table(("", ""), facts),
            "",
            "## What it knows",
            "",
            f"Two photos count as similar if they share one of these labels: {classes}. The model "
            "was trained to tell these apart and nothing else. Photos of other things get codes as "
            "well, and their neighbours may mean little. Biases of the photos and of their labels "
            "are in the codes too.",
            "",
            "## How well it retrieves",
            "",
            verdict,
            "",
            _table(("", "one code per photo", "several codes"), measures),
            "",
            f"{CHANCE.title} is {show(results['chance_map'], 3)}. One run with one seed: these "
            "numbers have no interval. `results.json` explains itself in README's table, "
            "`report/index.html` shows photos and figures.",
            "",
            "## How to use it",
            "",
            "Search by a photo, encode a folder, and serve a page; RUN is this folder:",
            "",
            "    python -m mch_jax.search --run=RUN --image=cat.jpg",
            "    python -m mch_jax.export --run=RUN --images=FOLDER --out=codes.npz",
            "    python -m mch_jax.serve --run=RUN",
            "",
            "`codes/database.npz` opens with NumPy alone.",
            "",
            "## What it should not be used for",
            "",
            "Equal codes do not prove that two photos show the same thing or person. Do not decide "
            "about people by them. Codes reveal something of the photo that they were made from. "
            "The licences of the photos and of the initial weights apply to what was made from "
            "them.",
            "",
        ]
    )


def write(workdir: Path, dataset: Dataset, files: RunFiles, verdict: str) -> Path:
    """Writes the model card of `text`, completely or not at all, and returns its path."""
    path = workdir / FILE
    with whole_file(path) as temporary:
        temporary.write_text(text(dataset, files, verdict), "utf-8")
    return path
