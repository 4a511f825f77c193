"""Fetches and checks the literature's data sets, and makes records of them.

python -m mch_jax.prepare --dataset=coco --root=DIR --download
python -m mch_jax.prepare --dataset=coco --root=DIR --records=TFDS_DIR --size=256
"""

from pathlib import Path

from absl import flags, logging

from mch_jax.main import run_command

_DATASET = flags.DEFINE_enum(
    "dataset", None, ["coco", "nuswide", "mirflickr"], "The data set.", required=True
)
_ROOT = flags.DEFINE_string("root", None, "Folder of the archives, or of what is in them.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Download the archives that are not there.")
_RECORDS = flags.DEFINE_string("records", None, "Make array_record files of small photos below it.")
_SIZE = flags.DEFINE_integer("size", 256, "Side of the squares in the records, in pixels.")
_SPLIT_SEED = flags.DEFINE_integer("split_seed", 0, "Draws the splits where there are no lists.")
_ON_DAMAGED = flags.DEFINE_enum("on_damaged", "refuse", ["refuse", "skip"], "Damaged photos.")
_SKIP_MISSING = flags.DEFINE_bool("skip_missing", False, "Leave out photos that are not there.")


def main(_: list[str]) -> None:
    """Runs what the flags say, and prints what to run next."""
    from mch_jax import data
    from mch_jax.data import fetch

    name = _DATASET.value
    if _ROOT.value is None:
        raise ValueError("--root is missing; expected the folder of the archives")
    root = Path(_ROOT.value)
    logging.info("%s: %s", name, fetch.TERMS[name])
    for archive in fetch.ARCHIVES[name]:
        if _DOWNLOAD.value and archive.url:
            fetch.download(archive, root)
        path = root / archive.name
        if path.is_file():
            logging.info("%s: checksum %s", path, fetch.check(path, archive))
        else:
            logging.info("%s: not there; looked for unpacked", path)
    settings = {"split_seed": _SPLIT_SEED.value, "skip_missing": _SKIP_MISSING.value}
    settings = {key: value for key, value in settings.items() if value}
    if _RECORDS.value is None:
        dataset = data.load(name, root, **settings)
        place = root
    else:
        from mch_jax.data import records

        place = records.prepare(
            name, root, _RECORDS.value, _SIZE.value, _ON_DAMAGED.value, **settings
        )
        dataset = data.load(name, place)
    for note in dataset.notes:
        logging.info("%s", note)
    print(  # noqa: T201
        f"{name}: {len(dataset.ids):,} photos, {len(dataset.query):,} queries, "
        f"{len(dataset.database):,} in the database, {len(dataset.train):,} for training\n"
        f"next: python -m mch_jax.main --config=configs/{name}_dch.py "
        f"--config.dataset.root={place}"
    )


if __name__ == "__main__":
    run_command(main)
