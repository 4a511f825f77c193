"""Runs on a network from elsewhere: training, export, search, service, and every refusal."""

import io
import json
import shutil
import subprocess
import sys

import colour_backbone
import httpx
import numpy as np
import pytest
import small_run as small
from PIL import Image
from tiny_run import assert_same, read, tiny

import mch_jax
from mch_jax import backbones, codes, export, pipeline, rivals, search, sweep
from mch_jax.backbones import backbone as module
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import Checkpoints, codes_file, load_arrays, save_arrays
from mch_jax.serving.limits import Limits
from mch_jax.serving.service import Service
from mch_jax.training import features_file, run

GRID = "colour_backbone:grid"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config_of(source=GRID, **changes):
    config = tiny("dch", model__backbone=source, model__input_size=64, **changes)
    config.base.update(optimizer="adam", learning_rate=1e-2, hash_rate=1.0, num_epochs=6)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a finished run on a Python function."""
    workdir = tmp_path_factory.mktemp("trained")
    pipeline.run_stages(config_of(), workdir)
    return workdir


@pytest.fixture(scope="module")
def photos(trained, tmp_path_factory):
    """A folder with the photos of the run's database, in its order."""
    folder = tmp_path_factory.mktemp("photos")
    dataset = run.open_run(config_of(), trained).dataset
    for number, row in enumerate(dataset.database):
        Image.fromarray(dataset.read(int(row))).save(folder / f"{number:02d}.png")
    return folder


def test_a_run_records_its_backbone(trained):
    record = backbones.read_record(trained / backbones.FILE)
    assert (record.kind, record.source, record.sha256, record.width) == ("function", GRID, "", 51)
    np.testing.assert_array_equal(record.probe, colour_backbone.grid(module.probe_images(64)))
    encoder = Encoder.load(trained / FILE)
    assert encoder.backbone.record.settings() == record.settings()
    assert encoder.backbone.network is None
    assert not [name for name in encoder.params if name.startswith("conv")]
    names = sorted(path.name.rpartition("-")[0] for path in (trained / "features").glob("*.npy"))
    assert names == ["scenes-regions", "scenes-train_views"]


def test_features_are_those_of_the_function(trained):
    this = run.open_run(config_of(), trained)
    image = this.dataset.read(5)[None]
    expected = colour_backbone.grid(image).astype(np.float16)[0]
    np.testing.assert_array_equal(this.region_features[5, 0], expected)
    views = this.train_views
    assert views.shape == (40, 4, 51)
    np.testing.assert_array_equal(views[:, 0], this.region_features[this.dataset.train, 0])
    np.testing.assert_allclose(views[:, 1, 48:], -views[:, 0, 48:], atol=2e-3)  # mirrored


def test_a_retriever_encodes_and_finds_photos(trained, photos):
    retriever = mch_jax.load(trained, backbone=GRID)
    own = codes_file.load(trained / "codes" / "database.npz")
    _, first = np.unique(own.item, return_index=True)
    paths = sorted(photos.iterdir())
    np.testing.assert_array_equal(retriever.encode(paths), own.codes[first])
    for number in (0, 7, 63):
        found = retriever.search(paths[number], 64)
        distances = {hit.item: hit.distance for hit in found}
        assert distances[number] == 0
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    packed, keep_prob = retriever.encoder.encode_regions(images)
    with np.load(trained / "codes" / "regions.npz", allow_pickle=False) as regions:
        np.testing.assert_array_equal(codes.to_bytes(packed, 12), regions["codes"])
        np.testing.assert_allclose(keep_prob, regions["keep_prob"], rtol=1e-5)
    given = mch_jax.load(trained, backbone=colour_backbone.grid)
    np.testing.assert_array_equal(given.encode(paths[0]), own.codes[:1])


def test_search_by_a_photo(trained, photos, capsys):
    arguments = [f"--run={trained}", f"--image={photos / '05.png'}", "--k=64", "--json"]
    search.main([*arguments, f"--backbone={GRID}"])
    (record,) = json.loads(capsys.readouterr().out)
    assert {hit["item"]: hit["distance"] for hit in record["hits"]}[5] == 0
    with pytest.raises(ValueError, match=r"only run if you name it; .*--backbone=colour_backbone"):
        search.main(arguments)


def test_exported_codes_equal_those_of_the_run(trained, photos, tmp_path):
    out = tmp_path / "codes.npz"
    arguments = [f"--run={trained}", f"--images={photos}", f"--out={out}"]
    with pytest.raises(ValueError, match="--backbone="):
        export.main(arguments)
    export.main([*arguments, f"--backbone={GRID}"])
    exported, own = codes_file.load(out), codes_file.load(trained / "codes" / "database.npz")
    np.testing.assert_array_equal(exported.codes, own.codes)
    np.testing.assert_array_equal(exported.item, own.item)
    np.testing.assert_array_equal(exported.box, own.box)
    np.testing.assert_allclose(exported.keep_prob, own.keep_prob, rtol=1e-5)


def test_the_service_encodes_photos(trained, photos):
    body = (photos / "05.png").read_bytes()
    with pytest.raises(ValueError, match="--backbone="):
        Service.open(trained, Limits(decoders=1))
    service = Service.open(trained, Limits(decoders=1), backbone=GRID)
    own = codes_file.load(trained / "codes" / "database.npz")
    with small.serving(service) as url, httpx.Client(base_url=url, timeout=300) as client:
        form = {"photo": ("a.png", io.BytesIO(body), "image/png")}
        answer = client.post("/search?k=64", files=form)
        assert answer.status_code == 200, answer.text
        hits = {hit["item"]: hit["distance"] for hit in answer.json()["mch"]["hits"]}
        assert hits[5] == 0
        of_regions = client.post("/encode", files={"photo": ("a.png", io.BytesIO(body))}).json()
        kept = {region["code"] for region in of_regions["regions"] if region["kept"]}
        assert kept == {own.codes[row].tobytes().hex() for row in np.flatnonzero(own.item == 5)}


@pytest.mark.parametrize("after", [7])
def test_a_resumed_run_is_the_same(trained, tmp_path, monkeypatch, after):
    save, calls = Checkpoints.save, []

    def save_and_stop(self, step, state):
        save(self, step, state)
        calls.append(step)
        if len(calls) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stages(config_of(), tmp_path)
    monkeypatch.undo()
    pipeline.run_stages(config_of(), tmp_path)
    assert_same(read(trained), read(tmp_path))
    assert (trained / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


def test_runs_share_features(trained, tmp_path):
    config = config_of(base__num_epochs=1)
    config.cache_dir = str(trained / "features")
    pipeline.run_stages(config, tmp_path / "first", "base")
    assert not (tmp_path / "first" / "features").exists()
    assert len(list((trained / "features").glob("*.npy"))) == 2  # the same names, nothing new


def test_rivals_and_sweep_need_the_function_again(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "run")
    for command, more in ((rivals, []), (sweep, ["--ratios=0.5", "--thresholds=0.5"])):
        with pytest.raises(ValueError, match="only run if you name it"):
            command.main([f"--run={workdir}", *more])
        with pytest.raises(ValueError, match="is not the backbone of"):
            command.main([f"--run={workdir}", "--backbone=colour_backbone:other", *more])
        command.main([f"--run={workdir}", f"--backbone={GRID}", *more])
    (row,) = json.loads((workdir / "sweep.json").read_text())["rows"]
    capsys.readouterr()
    assert row["map"] > 0


def test_another_network_is_noticed(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'colour_backbone:other' is another network .*differ by"):
        mch_jax.load(trained, backbone="colour_backbone:other")
    with pytest.raises(ValueError, match=r"'narrow' is another .* 20 features instead of 51"):
        mch_jax.load(trained, backbone=colour_backbone.narrow)
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "codes")
    monkeypatch.setattr(colour_backbone, "grid", colour_backbone.brighter)
    with pytest.raises(ValueError, match=r"is another network than that of .*backbone\.npz"):
        pipeline.run_stages(config_of(), workdir)


def test_small_differences_of_machines_are_accepted(trained):
    def nearly(images):
        return colour_backbone.grid(images) * (1 + 1e-4)

    mch_jax.load(trained, backbone=nearly)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("colour_backbone", "neither a Python function nor an ONNX file"),
        ("colour backbone:grid", "is not an import path; expected package.module:function"),
        ("colour_backbone:grid()", "is not an import path"),
        ("no_such_module:grid", "there is no module no_such_module; install its package"),
        ("colour_backbone.inner:grid", "there is no module colour_backbone.inner"),
        ("colour_backbone:triangle", "colour_backbone has no triangle"),
        (
            "colour_backbone:NOT_A_FUNCTION",
            "is no function but of the type int; expected",
        ),
        ("colour_backbone:one_axis", r"returned float32 \[102\] for 2 photos, expected float32 \["),
        ("colour_backbone:whole_numbers", r"returned int32 \[2, 3\] for 2 photos"),
        ("colour_backbone:not_finite", "NaN or above 65,504"),
        ("colour_backbone:too_large", "NaN or above 65,504; .*divide larger ones"),
        ("colour_backbone:no_array", r"returned <U8 \[\]"),
        ("colour_backbone:raises", r"raised RuntimeError \(no weights here\)"),
        ("colour_backbone:in_training_mode", "not in training mode"),
        ("broken_backbone:grid", r"importing broken_backbone raised ValueError \(broken\)"),
    ],
)
def test_what_is_no_backbone(source, message, tmp_path, monkeypatch):
    (tmp_path / "broken_backbone.py").write_text("raise ValueError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        backbones.load(source, 64, mean=MEAN, std=STD)
    assert "\n" not in str(error.value)


def test_a_wrong_backbone_ends_a_command_in_one_line(tmp_path):
    arguments = [
        "--config=tests/tiny_run.py", f"--workdir={tmp_path}", "--stage=base",
        "--config.model.backbone=no_such_module:grid",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "mch_jax.main", *arguments], capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: backbone 'no_such_module:grid': there is no module")
    assert "Traceback" not in result.stderr


def test_features_may_change_nothing_but_their_width_later(trained):
    encoder = Encoder.from_run(trained, GRID)
    record = encoder.backbone.record
    other = backbones.Backbone(record, colour_backbone.narrow)
    with pytest.raises(ValueError, match="returned 20 features of a photo, expected 51 as before"):
        other(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base__train_conv": True}, "False where model.backbone is given"),
        ({"model__features": "f.npz"}, "empty where model.features is given"),
        ({"model__mean": (0.5,)}, "three, one per channel"),
        ({"model__std": (0.5, 0.0, 0.5)}, "three, one per channel, each a number above 0"),
    ],
)
def test_configs_that_do_not_fit_a_backbone(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pipeline.run_stages(config_of(**changes), tmp_path)


@pytest.mark.slow
def test_an_agent_that_reads_labels_from_a_file_leaves_single_codes(trained, tmp_path):
    dataset = run.open_run(config_of(), trained).dataset
    path = tmp_path / "grid.npz"
    features_file.make(path, dataset, colour_backbone.grid, image_size=64, input_size=32)
    config = config_of(agent__recipe="cross_fit", agent__num_folds=2, agent__num_steps=2)
    config.agent.evidence_features = str(path)
    pipeline.run_stages(config, tmp_path / "run")
    encoder = Encoder.from_run(tmp_path / "run", GRID)
    own = codes_file.load(tmp_path / "run" / "codes" / "query.npz")
    images = np.stack([dataset.read(int(row)) for row in dataset.query])
    np.testing.assert_array_equal(encoder.encode(images), own.codes)
    with pytest.raises(ValueError, match="agent.evidence_features"):
        encoder.encode_regions(images)


def test_runs_without_a_backbone_take_none(small_run):
    with pytest.raises(ValueError, match="a backbone is given, but .* has none"):
        Encoder.from_run(small_run, GRID)


def test_runs_of_earlier_versions_resume(finished, tmp_path):
    """Their config.json has no field of a backbone, and their digests do not depend on one."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    for name in ("backbone", "mean", "std"):
        del config["model"][name]
    path.write_text(json.dumps(config))
    before = run.open_run(tiny(), finished)
    again = run.reopen(workdir)
    assert again.training_inputs == before.training_inputs
    assert pipeline.run_stages(tiny(), workdir)["base"] == read(finished)[0]["base"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pickle"}, "backbone.kind is 'pickle', expected one of function, onnx, "),
        ({"width": 50}, r"backbone.probe is float32 \(2, 51\), expected float32 \(2, 50\)"),
        ({"source": 3}, "backbone.source is 3"),
        ({"mean": [0.5]}, "another length than 3"),
        ({"std": [0, 0, 0]}, r"backbone.std\[0\] is 0"),
    ],
)
def test_damaged_records(trained, tmp_path, change, message):
    for name in (FILE, backbones.FILE):
        tree, settings = load_arrays(trained / name)
        inner = settings["backbone"] if name == FILE else settings
        inner.update(change)
        save_arrays(tmp_path / name, tree, settings)
    with pytest.raises(ValueError, match=message):
        Encoder.load(tmp_path / FILE)
    with pytest.raises(ValueError, match=message):
        backbones.read_record(tmp_path / backbones.FILE)


def test_nothing_of_a_run_is_imported_unasked(trained, tmp_path, monkeypatch):
    """A run that names another module must not have it imported, however it is used."""
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    workdir = shutil.copytree(trained, tmp_path / "run")
    tree, settings = load_arrays(workdir / FILE)
    settings["backbone"]["source"] = "hostile:grid"
    save_arrays(workdir / FILE, tree, settings)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace(GRID, "hostile:grid"))
    for use in (
        lambda: mch_jax.load(workdir),
        lambda: Service.open(workdir, Limits(decoders=1)),
        lambda: rivals.main([f"--run={workdir}"]),
        lambda: sweep.main([f"--run={workdir}"]),
    ):
        with pytest.raises(ValueError, match="only run if you name it"):
            use()
    assert pipeline.verify(workdir) in (0, 1)
    config = json.loads(path.read_text())
    for changed in ({"backbone": "hostile:grid.onnx"}, {"backbone": "vit_s16"}):
        config["model"] |= {"weights": "hostile:grid", **changed}  # and a record of a function
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match="is of the kind function, the config names"):
            _ = run.reopen(workdir).backbone
    assert "hostile" not in sys.modules
    mch_jax.load(workdir, backbone=GRID)  # the function under its true name is the same network
