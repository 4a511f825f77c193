"""Downloads and checks the data sets of the literature, and converts them to records.

python -m mch_jax.prepare --dataset=coco --root=DIR --download
python -m mch_jax.prepare --dataset=coco --root=DIR --records=TFDS_DIR --size=256
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_enum(
        "dataset", None, ["coco", "nuswide", "mirflickr"], "The data set.", flag_values=values
    )
    flags.DEFINE_string(
        "root", None, "Folder of the archives, or of their unpacked files.", flag_values=values
    )
    flags.DEFINE_bool("download", False, "Download missing archives.", flag_values=values)
    flags.DEFINE_string(
        "records", None, "Folder in which to write array_record files of small photos.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "size", 256, "Side of the square photos in the records, in pixels.", flag_values=values
    )
    flags.DEFINE_integer(
        "split_seed", 0, "Seed of the splits, for data sets without lists.", flag_values=values
    )
    flags.DEFINE_enum(
        "on_damaged", "refuse", ["refuse", "skip"], "What to do about damaged photos.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("skip_missing", False, "Leave out missing photos.", flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Prepares the data set and prints the command that trains on it."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(
        options, dataset="coco, nuswide or mirflickr", root="the folder of the archives"
    )
    from mch_jax import data
    from mch_jax.data import fetch

    name, root = options.dataset, Path(options.root)
    logging.info("%s: %s", name, fetch.TERMS[name])
    for archive in fetch.ARCHIVES[name]:
        if options.download and archive.url:
            fetch.download(archive, root)
        path = root / archive.name
        if path.is_file():
            logging.info("%s: checksum %s", path, fetch.check(path, archive))
        else:
            logging.info("%s does not exist; expecting unpacked files", path)
    settings = {"split_seed": options.split_seed, "skip_missing": options.skip_missing}
    settings = {key: value for key, value in settings.items() if value}
    if options.records is None:
        dataset = data.load(name, root, **settings)
        location = root
    else:
        from mch_jax.data import records

        location = records.prepare(
            name, root, options.records, options.size, options.on_damaged, **settings
        )
        dataset = data.load(name, location)
    for note in dataset.notes:
        logging.info("%s", note)
    command.show(
        f"{name}: {len(dataset.ids):,} photos, {len(dataset.query):,} queries, "
        f"{len(dataset.database):,} in the database, {len(dataset.train):,} for training\n"
        f"next: python -m mch_jax.main --config=configs/{name}_dch.py "
        f"--config.dataset.root={location}"
    )


if __name__ == "__main__":
    command.run(main)
