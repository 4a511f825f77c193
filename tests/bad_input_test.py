"""Cases of bad input and their error messages, which docs/bad-input.md lists in a table.

MCH_WRITE_DOCS=1 writes the messages into the table; review the changes then.
"""

import io
import os
import pathlib
import re
import shutil
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from tiny_run import changed, tiny

from mch_jax import backbones, data, dedup, evaluation, grid, main, search
from mch_jax.data import similar_pairs
from mch_jax.files import Checkpoints, codes_file, load_arrays, save_arrays
from mch_jax.index import BucketIndex
from mch_jax.retriever import Retriever
from mch_jax.training import run, validation

TABLE = pathlib.Path(__file__).parents[1] / "docs" / "bad-input.md"
HEAD = "| kind | input | answer |\n| --- | --- | --- |\n"


class Case(NamedTuple):
    """One kind of bad input.

    `act` gets an empty folder and the workdir of a finished run. It raises an error, or returns a
    text where unusual input is accepted.
    """

    kind: str
    input: str
    act: Callable[[pathlib.Path, pathlib.Path], object]


# ---- arguments -----------------------------------------------------------------------------------


def arguments(text: str, module, *given: str) -> Case:
    def act(folder, finished):
        with warnings.catch_warnings():  # ml_collections loads config files by an old method
            warnings.simplefilter("ignore", DeprecationWarning)
            module.main(given)

    return Case("arguments", text, act)


ARGUMENTS = [
    arguments("a mistyped flag", search, "--rum=DIR"),
    arguments("a flag of another command", search, "--run=DIR", "--stage=all"),
    arguments("an argument without a flag", search, "--run=DIR", "cat.jpg"),
    arguments("no value of a required flag", search),
    arguments("a value out of range", search, "--run=DIR", "--image=cat.jpg", "--k=0"),
    arguments("an unknown stage", main, "--config=tests/tiny_run.py", "--stage=bake"),
    arguments("a text for a number", main, "--config=tests/tiny_run.py", "--config.seed=one"),
    arguments("an unknown field", main, "--config=tests/tiny_run.py", "--config.sed=1"),
    arguments("a grid without a config for its data", grid, "--dataset=faces", "--methods=dch"),
    arguments("a change of a grid without a value", grid, "--dataset=scenes", "--set=num_bits"),
    arguments("dedup of a folder that is not there", dedup, "--images=no/photos", "--out=no/out"),
    arguments(
        "dedup with a distance below 0", dedup, "--images=no/photos", "--out=x", "--threshold=-1"
    ),
]


# ---- configs -------------------------------------------------------------------------------------


def config(text: str, **fields) -> Case:
    def act(folder, finished):
        validation.check(changed(**fields))

    return Case("config", text, act)


def backbone(text: str, source: str) -> Case:
    def act(folder, finished):
        backbones.load(source, 64, mean=(0.5,) * 3, std=(0.5,) * 3)

    return Case("config", text, act)


def resumed(text: str, **changes) -> Case:
    def act(folder, finished):
        values = tiny()
        for name, value in changes.items():
            *parents, last = name.split("__")
            node: Any = values
            for parent in parents:
                node = node[parent]
            node[last] = value
        run.open_run(values, finished)

    return Case("config", text, act)


CONFIGS = [
    config("codes of 0 bits", num_bits=0),
    config("codes of 65 bits", num_bits=65),
    config("codes of 1.5 bits", num_bits=1.5),
    config("a negative seed", seed=-1),
    config("an unknown method", method="dhc"),
    config("a setting that the method does not have", objective={"gama": 2.0}),
    config("a setting out of range", objective={"gamma": -1.0}),
    config("an objective for a method without one", method="itq", objective={"gamma": 1.0}),
    config("an unknown data set", dataset__name="imagenet"),
    config("an unknown treatment of damaged photos", dataset__on_damaged="ignore"),
    config("photos too small for the network", model__input_size=62),
    config("sigma above 1", encode__crop_ratio=1.5),
    config("sigma of 0", encode__crop_ratio=0.0),
    config("xi below 0", encode__keep_threshold=-0.5),
    config("xi that is not a number", encode__keep_threshold=float("nan")),
    config("a learning rate of 0", base__learning_rate=0.0),
    config("an infinite learning rate", agent__learning_rate=float("inf")),
    config("momentum of 1", base__momentum=1.0),
    config("a batch of one photo", base__batch_size=1),
    config("no epochs", base__num_epochs=0),
    config("a layer of width 0", agent__widths=(64, 0)),
    config("no hidden layers", agent__widths=()),
    config("text instead of a number", encode__batch_size="many"),
    config("fixed convolutions without views", base__train_conv=False, base__num_views=0),
    config("weights of another width", model__weights="lpips", model__width=0.5),
    config("a backbone that is trained", model__backbone="net.onnx"),
    backbone("a backbone that is no network", "resnet18"),
    backbone("a backbone of a module that is not there", "my_networks:features"),
    backbone("a backbone that is no function", "colour_backbone:NOT_A_FUNCTION"),
    backbone("a backbone that returns whole numbers", "colour_backbone:whole_numbers"),
    backbone("a backbone that returns NaN", "colour_backbone:not_finite"),
    backbone("a backbone in training mode", "colour_backbone:in_training_mode"),
    backbone("a backbone whose file is not there", "DIR/net.onnx"),
    resumed("the workdir of a run with another code length", num_bits=16),
    resumed("the workdir of a run with another method", method="mmhh"),
    resumed("the workdir of a run with another seed", seed=5),
]

# ---- data ----------------------------------------------------------------------------------------

HEADER = "file,split,cat,dog\n"
ROWS = "a.jpg,train,1,0\nb.jpg,database,0,1\nc.jpg,query,1,0\n"


def picture(width=24, height=16) -> Image.Image:
    ramp = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(ramp)


def encoded(image: Image.Image, kind="JPEG", **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def huge_png() -> bytes:
    """Returns a few bytes of a PNG file whose header states 100,000 by 100,000 pixels."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IEND", b"")


def make_folder(folder, files=(), photos=("a.jpg", "b.jpg", "c.jpg")):
    for name in photos:
        (folder / name).write_bytes(encoded(picture()))
    for name, content in dict(files).items():
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def table(text: str, labels: str | bytes, on_damaged="refuse", **settings) -> Case:
    def act(folder, finished):
        make_folder(folder, {"labels.csv": labels})
        data.audit(data.load("folder", folder, **settings), on_damaged)
        return "accepted"

    return Case("labels", text, act)


def lists(text: str, train="a.jpg 1 0", database="a.jpg 1 0\nb.jpg 0 1", query="c.jpg 1 0", **more):
    def act(folder, finished):
        files = {"query.txt": query, "database.txt": database, "train.txt": train}
        files |= {name.replace("_", "."): content for name, content in more.items()}
        make_folder(folder, {name: content for name, content in files.items() if content})
        data.audit(data.load("folder", folder))
        return "accepted"

    return Case("lists", text, act)


def pairs(text: str, content: str, name="pairs.csv") -> Case:
    def act(folder, finished):
        make_folder(folder, {name: content})
        similar_pairs.read(folder / name, ["a.jpg", "b.jpg", "c.jpg"], 0.5)

    return Case("pairs", text, act)


def photo(text: str, content: bytes, name="photo") -> Case:
    def act(folder, finished):
        pixels = data.decode(content, name)
        return f"read: {pixels.shape[1]} x {pixels.shape[0]}, RGB"

    return Case("photo", text, act)


def pack(text: str, write: Callable[[pathlib.Path], None]) -> Case:
    def act(folder, finished):
        make_folder(folder, {"labels.csv": HEADER + ROWS})
        write(folder)
        data.audit(data.load("coco18", folder))

    return Case("pack", text, act)


def compressed_tar(folder):
    with tarfile.open(folder / "images.tar", "w:gz") as tar:
        tar.add(folder / "a.jpg", "a.jpg")


def escaping_tar(folder):
    """Writes a tar with a member above the folder, named in labels.csv. Tars are never unpacked."""
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(folder / "a.jpg", "../a.jpg")
    (folder / "labels.csv").write_text(HEADER + ROWS.replace("a.jpg", "../a.jpg"))


def incomplete_tar(folder):
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(folder / "a.jpg", "a.jpg")


EXIF = Image.Exif()
EXIF[0x0112] = 6  # rotated by 90 degrees
ANIMATION = [picture(), picture().rotate(180)]
DEEP = Image.fromarray(np.full((4, 6), 0x8000, np.uint16))

DATA = [
    table("no header", ROWS),
    table("an empty labels.csv", ""),
    table("a header without a photo", HEADER),
    table("no class", "file,split\na.jpg,train\n"),
    table("the same class twice", "file,split,cat,cat\na.jpg,train,1,0\n"),
    table("an additional column", HEADER + ROWS + "d.jpg,train,1,0,1\n"),
    table("a label of 2", HEADER + ROWS + "d.jpg,train,2,0\n"),
    table("an empty label", HEADER + ROWS + "d.jpg,train,,0\n"),
    table("an unknown split", HEADER + ROWS + "d.jpg,test,1,0\n"),
    table("no query", HEADER + "a.jpg,train,1,0\nb.jpg,database,0,1\n"),
    table("no training photo", HEADER + "b.jpg,database,0,1\nc.jpg,query,1,0\n"),
    table("a photo listed twice", HEADER + ROWS + "a.jpg,query,1,0\n"),
    table("a missing photo", HEADER + ROWS + "d.jpg,train,1,0\n"),
    table("a missing photo, with on_damaged = skip", HEADER + ROWS + "d.jpg,train,1,0\n", "skip"),
    table("a path that leaves the folder", HEADER + ROWS + "../d.jpg,train,1,0\n"),
    table("an absolute path", HEADER + ROWS + "/etc/d.jpg,train,1,0\n"),
    table("a name with a zero byte", (HEADER + ROWS + "d\0.jpg,train,1,0\n").encode()),
    table("text that is not UTF-8", "file,split,Käse\n".encode("latin-1")),
    table("a fraction of queries above 1", "file,cat\na.jpg,1\nb.jpg,0\n", query_fraction=1.5),
    table("a setting that the reader does not have", HEADER + ROWS, fraction=0.5),
    lists("no train.txt", train=""),
    lists("a line without labels", train="a.jpg"),
    lists("a line with an additional label", train="a.jpg 1 0\nb.jpg 0 1 1"),
    lists("labels of 0 and 2", train="a.jpg 1 0\nb.jpg 0 2"),
    lists("a query in the database", query="b.jpg 0 1"),
    lists("a training photo outside the database", train="c.jpg 1 0"),
    lists("other labels for the same photo", train="a.jpg 0 1"),
    lists("lists with different numbers of labels", query="c.jpg 1 0 1"),
    lists("a photo twice in one list", train="a.jpg 1 0\na.jpg 1 0"),
    lists("a path that leaves the folder", query="../c.jpg 1 0"),
    lists("a wrong number of class names", classes_txt="cat\ndog\nbird\n"),
    lists("absolute paths of another machine", query="/home/me/data/c.jpg 1 0"),
    pairs("a table without names of columns", "a.jpg,b.jpg\n"),
    pairs("a photo paired with itself", "file,other\na.jpg,a.jpg\n"),
    pairs("a score that is no number", "file,other,similarity\na.jpg,b.jpg,high\n"),
    pairs("two scores of a pair", "file,other,similarity\na.jpg,b.jpg,1\nb.jpg,a.jpg,0\n"),
    pairs("photos that are not there", "file,other\nx.jpg,y.jpg\n"),
    pairs("a triplet without a negative photo", "anchor,positive\na.jpg,b.jpg\n", "triplets.csv"),
    photo("1 pixel", encoded(picture(1, 1), "PNG")),
    photo("CMYK", encoded(picture().convert("CMYK"))),
    photo("16 bits per channel", encoded(DEEP, "PNG")),
    photo("an animation", encoded(ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION[1:])),
    photo("rotated by EXIF", encoded(picture(), exif=EXIF)),
    photo("transparent", encoded(picture().convert("RGBA"), "PNG")),
    photo("a strip of 1 x 3,000", encoded(picture(1, 3000), "PNG")),
    photo("100,000 x 100,000 pixels in a file of 57 bytes", huge_png()),
    photo("an empty file", b""),
    photo("a text file", b"this is no photo"),
    photo("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    photo("PostScript, which Pillow would execute", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    photo("half a JPEG", encoded(picture(200, 200))[:1500]),
    pack("no images.tar", lambda folder: None),
    pack("a compressed tar", compressed_tar),
    pack("a tar without some of the photos", incomplete_tar),
    pack("a member above the folder", escaping_tar),
]

# ---- files of runs -------------------------------------------------------------------------------


def codes(text: str, **changes) -> Case:
    def act(folder, finished):
        path = folder / "database.npz"
        with np.load(finished / "codes" / "database.npz", allow_pickle=False) as archive:
            arrays = dict(archive) | changes
        np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
        codes_file.load(path)

    return Case("codes file", text, act)


def of_run(kind: str, text: str, act: Callable[[pathlib.Path], object]) -> Case:
    def copied(folder, finished):
        return act(shutil.copytree(finished, folder / "run"))

    return Case(kind, text, copied)


def cut(path: pathlib.Path, size=100) -> None:
    path.write_bytes(path.read_bytes()[:size])


def query_with(**changes):
    def act(workdir):
        path = workdir / "codes" / "query.npz"
        file = codes_file.load(path)
        codes_file.save(path, file._replace(**{k: f(file) for k, f in changes.items()}))
        evaluation.measure_run(workdir, run.read_config(workdir))

    return act


def encoder_with(change: Callable[[dict, dict], None]):
    def act(workdir):
        variables, settings = load_arrays(workdir / "encoder.npz")
        change(variables, settings)
        save_arrays(workdir / "encoder.npz", variables, settings)
        Retriever(workdir)

    return act


def damaged(name: str, act: Callable[[pathlib.Path], object], size=100):
    def damage(workdir):
        cut(workdir / name, size)
        return act(workdir)

    return damage


def restore(num_bits: int):
    def act(workdir):
        state = {"hash": {"kernel": np.zeros((16, 12), np.float32)}}
        checkpoints = Checkpoints(workdir / "other")
        checkpoints.save(1, state)
        try:
            checkpoints.restore({"hash": {"kernel": np.zeros((16, num_bits), np.float32)}})
        finally:
            checkpoints.close()

    return act


def other_index(workdir):
    path = workdir / "index"
    BucketIndex.from_file(workdir / "codes" / "database.npz").save(path)
    text = (path / "meta.json").read_text()
    (path / "meta.json").write_text(text.replace("mch-index/2", "mch-index/9"))
    BucketIndex.open(path)


RUNS = [
    codes("another version of the format", format=np.str_("mch-codes/2")),
    codes("no format", format=None),
    codes("a missing array", labels=None),
    codes("an additional array", more=np.zeros(3)),
    codes("a wrong num_bits", num_bits=np.int64(32)),
    codes("padding bits that are set", num_bits=np.int64(9)),
    codes("codes of another type", codes=np.zeros((70, 2), np.int8)),
    codes("fewer items than codes", item=np.zeros(3, np.int64)),
    codes("names that are pickled objects", ids=np.array([None], object)),
    of_run("codes file", "a file cut short", damaged(
        "codes/database.npz", lambda w: codes_file.load(w / "codes" / "database.npz"))),
    of_run("codes file", "a missing file", lambda w: codes_file.load(w / "none.npz")),
    of_run("codes file", "queries with another code length than the database", query_with(
        codes=lambda f: np.concatenate([f.codes, f.codes], 1), num_bits=lambda f: 28)),
    of_run("codes file", "queries with another number of classes than the database", query_with(
        labels=lambda f: f.labels[:, :5])),
    of_run("run", "regions.npz cut short", damaged(
        "codes/regions.npz", lambda w: evaluation.measure_run(w, run.read_config(w)))),
    of_run("run", "config.json cut short", damaged(
        "config.json", lambda w: run.open_run(tiny(), w))),
    of_run("run", "results.json cut short", damaged("results.json", evaluation.verify)),
    of_run("run", "a workdir without a run", lambda w: evaluation.verify(w / "codes")),
    of_run("encoder", "a file cut short", damaged("encoder.npz", Retriever)),
    of_run("encoder", "a setting of another version", encoder_with(
        lambda variables, settings: settings.update(activation="gelu"))),
    of_run("encoder", "a missing setting", encoder_with(
        lambda variables, settings: settings.pop("crop_ratio"))),
    of_run("encoder", "a code length that its layers do not have", encoder_with(
        lambda variables, settings: settings.update(num_bits=24))),
    of_run("checkpoint", "another code length", restore(32)),
    of_run("index", "another version of the format", other_index),
]  # fmt: skip

CASES = ARGUMENTS + CONFIGS + DATA + RUNS


def answer(case: Case, folder: pathlib.Path, finished: pathlib.Path) -> str:
    """Returns the message of a case, without what differs from machine to machine."""
    try:
        found = str(case.act(folder, finished))
    except (ValueError, OSError) as error:
        found = str(error)
        assert found  # noqa: PT017
        assert "\n" not in found  # noqa: PT017
    for path, word in ((folder, "DIR"), (finished, "RUN")):
        found = found.replace(str(path), word)
    # Messages of Pillow, NumPy and Python differ between versions.
    found = re.sub(r"(?<=does not decode: )(?!expected|[\d,]+ pixels).*", "(reason)", found)
    found = re.sub(r"(?<=damaged )\(.*?\)+(?=;)|(?<=cannot be read )\(.*?\)", "(reason)", found)
    return found.replace("|", "/")


def row(case: Case, found: str) -> str:
    return f"| {case.kind} | {case.input} | {found} |\n"


def test_there_are_at_least_60_different_cases():
    assert len({case[:2] for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.input}")
def test_the_message_is_in_the_table(case, tmp_path, finished):
    before = sorted(x.name for x in finished.rglob("*"))
    (tmp_path / "photos").mkdir()
    found = answer(case, tmp_path / "photos", finished)
    assert found != "None", "bad input was accepted"
    assert len(found) < 500
    if os.environ.get("MCH_WRITE_DOCS"):
        text = TABLE.read_text()
        rows = dict.fromkeys(text.split(HEAD)[1].splitlines(keepends=True))
        start = row(case, "").removesuffix(" |\n")
        rows = [line for line in rows if not line.startswith(start)] + [row(case, found)]
        order = {f"| {c.kind} | {c.input} |": i for i, c in enumerate(CASES)}
        rows = [x for x in rows if " |".join(x.split(" |")[:2]) + " |" in order]
        rows.sort(key=lambda line: order[" |".join(line.split(" |")[:2]) + " |"])
        TABLE.write_text(text.split(HEAD)[0] + HEAD + "".join(rows))
    assert row(case, found) in TABLE.read_text()
    assert sorted(x.name for x in finished.rglob("*")) == before


def test_the_table_has_only_tested_cases():
    rows = TABLE.read_text().split(HEAD)[1].splitlines()
    known = [f"| {case.kind} | {case.input} |" for case in CASES]
    assert len(rows) == len(known)
    assert all(line.startswith(start) for line, start in zip(rows, known, strict=True))
