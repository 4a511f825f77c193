"""ResNet-50 and Vision Transformers: sizes, weights, torchvision's and timm's features."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import tiny

from mch_jax import backbones, pipeline
from mch_jax.backbones import networks
from mch_jax.encoder import Encoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = networks.VisionTransformer(8, 2, depth=2)


@pytest.mark.parametrize(
    ("name", "params", "statistics"),
    [("resnet50", 23_508_032, 53_120), ("vit_s16", 21_665_664, 0), ("vit_b16", 85_798_656, 0)],
)
def test_the_number_of_parameters(name, params, statistics):
    """Torchvision's and timm's, without their classifiers."""
    shapes = networks.shapes(name, 224)
    counts = {key: sum(map(math.prod, sizes(tree))) for key, tree in shapes.items()}
    assert counts == {"params": params} | ({"batch_stats": statistics} if statistics else {})


def sizes(tree):
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def small(monkeypatch):
    """A small Vision Transformer under the name of ViT-S/16."""
    monkeypatch.setattr(networks, "NETWORKS", {**networks.NETWORKS, "vit_s16": SMALL})


def weights(side: int = 64) -> dict[str, Any]:
    """Returns random weights of the small network, under timm's names."""
    rng = np.random.default_rng(0)
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, (side // 16) ** 2 + 1, 8)}
    shapes |= {"patch_embed.proj.weight": (8, 3, 16, 16), "patch_embed.proj.bias": (8,)}
    for block in range(2):
        dense = {"attn.qkv": (24, 8), "attn.proj": (8, 8), "mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
        for name, shape in dense.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape}
            shapes |= {f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.{leaf}": (8,) for leaf in ("weight", "bias")}
    shapes |= {"norm.weight": (8,), "norm.bias": (8,)}
    return {
        name: rng.normal(0, 0.3 / math.sqrt(math.prod(shape[1:]) or 1), shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def normalized(x, scale, shift):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + shift


def plain(arrays, image):
    """Returns the features of one photo, token by token and head by head."""

    def dense(name, x):
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(name, x):
        return normalized(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    image = (image / 255 - np.array(MEAN)) / np.array(STD)
    tokens = [arrays["cls_token"][0, 0]]
    kernel = arrays["patch_embed.proj.weight"]
    for top in range(0, len(image), 16):
        for left in range(0, len(image), 16):
            patch = image[top : top + 16, left : left + 16].transpose(2, 0, 1)
            tokens.append((kernel * patch).sum((1, 2, 3)) + arrays["patch_embed.proj.bias"])
    x = np.stack(tokens) + arrays["pos_embed"][0]
    for block in range(2):
        name = f"blocks.{block}"
        query, key, value = np.split(dense(f"{name}.attn.qkv", norm(f"{name}.norm1", x)), 3, 1)
        heads = []
        for head in range(2):
            own = slice(4 * head, 4 * head + 4)
            scores = np.exp(query[:, own] @ key[:, own].T / 2)
            heads.append(scores / scores.sum(1, keepdims=True) @ value[:, own])
        x = x + dense(f"{name}.attn.proj", np.concatenate(heads, 1))
        y = dense(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))
        y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = x + dense(f"{name}.mlp.fc2", y)
    return norm("norm", x)[0]


def photos(side=64, count=2):
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)


def test_a_vision_transformer_is_the_plain_one(small, tmp_path):
    np.savez(tmp_path / "w.npz", **weights())
    features = networks.network("vit_s16", str(tmp_path / "w.npz"), 64, MEAN, STD)(photos())
    expected = [plain(weights(), image) for image in photos()]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def of_torchvision(arrays) -> dict[str, Any]:
    """Returns the arrays under torchvision's names."""
    renamed = {}
    for name, value in arrays.items():
        for ours, theirs in (
            ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"),
            ("patch_embed.proj.", "conv_proj."), ("blocks.", "encoder.layers.encoder_layer_"),
            (".norm", ".ln_"), ("attn.qkv.", "self_attention.in_proj_"),
            ("attn.proj.", "self_attention.out_proj."), ("mlp.fc1.", "mlp.0."),
            ("mlp.fc2.", "mlp.3."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if name.startswith("norm."):
            name = f"encoder.ln.{name.removeprefix('norm.')}"
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("change", [of_torchvision, dict])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_both_packages_and_prefixes(small, tmp_path, change, prefix):
    arrays = change(weights()) | {"head.weight": np.zeros((3, 8), np.float32)}
    np.savez(tmp_path / "a.npz", **weights())
    np.savez(tmp_path / "b.npz", **{prefix + name: value for name, value in arrays.items()})
    first = networks.import_weights("vit_s16", str(tmp_path / "a.npz"), 64)
    second = networks.import_weights("vit_s16", str(tmp_path / "b.npz"), 64)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, r"norm\.bias of vit_s16 is missing, expected float \(8,\)"),
        ({"norm.bias": np.zeros(7, np.float32)}, r"norm\.bias of vit_s16 is float32 \(7,\)"),
        ({"norm.bias": np.zeros(8, np.int32)}, r"norm\.bias of vit_s16 is int32"),
        ({"norm.bias": np.full(8, np.nan, np.float32)}, r"not finite"),
        ({"blocks.2.norm1.bias": np.zeros(8, np.float32)}, r"has blocks\.2\.norm1\.bias, which"),
        ({"pos_embed": np.zeros((1, 197, 8), np.float32)}, r"set model\.input_size to the file's"),
        ({"norm.weight": np.zeros((8, 8), np.float32)}, r"expected float \(8,\)"),
    ],
)
def test_weights_of_another_network(small, tmp_path, change, message):
    arrays = weights() | change
    arrays = {name: value for name, value in arrays.items() if value is not None}
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        networks.import_weights("vit_s16", str(tmp_path / "w.npz"), 64)
    assert "\n" not in str(error.value)


def test_sides_that_are_no_multiple_of_a_patch(small, tmp_path):
    np.savez(tmp_path / "w.npz", **weights())
    with pytest.raises(ValueError, match="input_size is 65, expected a multiple of 16"):
        networks.import_weights("vit_s16", str(tmp_path / "w.npz"), 65)


@pytest.mark.slow
def test_a_run_on_a_named_network(small, tmp_path):
    np.savez(tmp_path / "w.npz", **weights())
    config = tiny("dch", model__backbone="vit_s16", model__input_size=64, base__num_epochs=1)
    for wrong in ("", "lpips"):
        config.model.update(weights=wrong, width=1.0)
        with pytest.raises(ValueError, match="model.weights is .*, expected a file with the net"):
            pipeline.run_stages(config, tmp_path / "wrong")
    config.model.weights = str(tmp_path / "w.npz")
    pipeline.run_stages(config, tmp_path / "run")
    record = backbones.read_record(tmp_path / "run" / backbones.FILE)
    assert (record.kind, record.source, record.width) == ("vit_s16", config.model.weights, 8)
    pipeline.run_stages(config, tmp_path / "run", "encode")
    encoder = Encoder.from_run(tmp_path / "run")
    assert encoder.encode(photos()).shape == (2, 2)
    (tmp_path / "w.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(ValueError, match=r"w\.npz': No such file"):
        Encoder.from_run(tmp_path / "run")
    moved = Encoder.from_run(tmp_path / "run", str(tmp_path / "moved.npz"))
    np.testing.assert_array_equal(moved.encode(photos()), encoder.encode(photos()))
    arrays = weights()
    arrays["norm.bias"] = np.ones(8, np.float32)
    np.savez(tmp_path / "moved.npz", **arrays)
    with pytest.raises(ValueError, match=r"has SHA-256 .*; give the run's file by --backbone="):
        Encoder.from_run(tmp_path / "run", str(tmp_path / "moved.npz"))


def torch_network(name):
    """Returns a network of torchvision or timm with random weights, and its features."""
    torch = pytest.importorskip("torch")
    package = "timm" if name.startswith("timm") else "torchvision"
    try:
        module = __import__(package)
    except Exception as error:  # noqa: BLE001 - a build for another torch raises several types
        pytest.skip(f"{package}: {error}")
    torch.manual_seed(0)
    if name == "torchvision resnet50":
        made = module.models.resnet50()
        forward = torch.nn.Sequential(*list(made.children())[:-1], torch.nn.Flatten())
    elif name == "timm resnet50":
        made = forward = module.create_model("resnet50", num_classes=0)
    elif name == "torchvision vit_b16":
        made = module.models.vit_b_16(image_size=64)

        def forward(pixels):
            tokens = made._process_input(pixels)
            token = made.class_token.expand(len(tokens), -1, -1)
            return made.encoder(torch.cat([token, tokens], 1))[:, 0]
    else:
        size = {"timm vit_s16": "small", "timm vit_b16": "base"}[name]
        made = module.create_model(f"vit_{size}_patch16_224", img_size=64)

        def forward(pixels):
            return made.forward_features(pixels)[:, 0]

    for key, value in made.named_buffers():  # statistics and offsets that differ from their start
        if key.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    for value in made.parameters():
        if value.ndim == 1:
            value.data += 0.1 * torch.randn_like(value)
    made.eval()
    return torch, made, forward


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("torchvision resnet50", ".pth"), ("timm resnet50", ".safetensors"),
        ("torchvision vit_b16", ".pth"), ("timm vit_s16", ".npz"), ("timm vit_b16", ".pth"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_features_are_those_of_the_other_package(name, suffix, tmp_path):
    torch, made, forward = torch_network(name)
    path = str(tmp_path / f"weights{suffix}")
    if suffix == ".pth":
        torch.save(made.state_dict(), path)
    elif suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in made.state_dict().items()})
    else:
        pytest.importorskip("safetensors.torch").save_file(made.state_dict(), path)
    images = photos()
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (MEAN, STD))
    with torch.inference_mode():
        pixels = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = forward(pixels).numpy()
    features = networks.network(name.split()[1], path, 64, MEAN, STD)(images)
    assert np.linalg.norm(features - expected) < 1e-5 * np.linalg.norm(expected)
