"""Names of files of the Hugging Face Hub, with a folder in the Hub's place."""

import sys
import types

import numpy as np
import pytest

from mch_jax import backbones
from mch_jax.files import hub, import_alexnet
from mch_jax.models import AlexNet
from mch_jax.training.network import random_params


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with owner/name/file, from which a stand-in for huggingface_hub downloads."""

    def hf_hub_download(repository, file, revision=None):
        path = tmp_path / repository / file
        if not path.is_file() or revision not in (None, "main"):
            raise OSError(f"404: no file {file}\nin {repository} at {revision}")
        return str(path)

    module = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    (tmp_path / "timm" / "alex.net").mkdir(parents=True)
    return tmp_path / "timm" / "alex.net"


def test_names(folder):
    (folder / "sub").mkdir()
    for name in ("a.npz", "sub/a.npz"):
        (folder / name).touch()
        assert hub.local_path(f"hf:timm/alex.net/{name}") == str(folder / name)
    assert hub.local_path("hf:timm/alex.net@main/a.npz") == str(folder / "a.npz")
    assert hub.local_path("sub/a.npz") == "sub/a.npz"
    for wrong in ("hf:a.npz", "hf:timm/a.npz", "hf:timm/alex.net/../a.npz", "hf:/a/b/c", "hf:a/b/"):
        with pytest.raises(ValueError, match="names no file of the Hub; expected hf:owner/name"):
            hub.local_path(wrong)
    reason = r"v2/b.npz cannot be downloaded \(OSError: 404: no file b.npz in timm/alex.net at v2\)"
    with pytest.raises(ValueError, match=reason):
        hub.local_path("hf:timm/alex.net@v2/b.npz")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'mch_jax\[hub\]'"):
        hub.local_path("hf:timm/alex.net/a.npz")


def test_weights_of_the_model_and_of_a_backbone(folder):
    model = AlexNet(4, hidden=0, width=1 / 16)
    arrays = {}
    names = ("features.0", "features.3", "features.6", "features.8", "features.10")
    for name, layer in zip(names, list(random_params(model, 63, 0).values())[:5], strict=True):
        arrays[f"{name}.weight"] = np.ones(layer["kernel"].shape[::-1], np.float32)
        arrays[f"{name}.bias"] = np.ones(layer["bias"].shape, np.float32)
    np.savez(folder / "a.npz", **arrays)
    params = import_alexnet(random_params(model, 63, 0), "hf:timm/alex.net/a.npz")
    assert (params["conv5"]["kernel"] == 1).all()
    with pytest.raises(ValueError, match="a.npz: .* of vit_s16 is missing"):
        backbones.load(
            "vit_s16",
            32,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            weights="hf:timm/alex.net/a.npz",
        )
    assert backbones.kind_of("hf:timm/alex.net/net.onnx") == backbones.kind_of("net.onnx")
