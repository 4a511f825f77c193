"""ResNet-50 and Vision Transformers as Flax modules, up to the features before their classifier.

They follow torchvision's and timm's layers exactly, and the names of their layers are those of
torchvision's ResNet and timm's Vision Transformer, so that `import_weights` finds each array by
its name. They are kept fixed, or trained with the hash layer as `AlexNet.trunk`.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mch_jax.files import read_arrays
from mch_jax.files.weights import without_prefix

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner channels, blocks
_EPSILON = 1e-5  # of batch norm
_PATCH = 16


class ResNet50(nn.Module):
    """ResNet-50 (arXiv 1512.03385) as in torchvision, with strides in the 3 x 3 convolutions.

    Batch statistics are those of the weights.

    Attributes:
      stages: Inner channels and number of blocks of each stage.
      is_folded: Whether scales and biases hold the batch statistics (`folded`), which is the form
        that is trained.
    """

    stages: Sequence[tuple[int, int]] = _STAGES
    is_folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns the last map of normalised images, averaged over rows and columns."""

        def conv(x: Array, name: str, norm: str, channels: int, window: int, stride: int) -> Array:
            pads = [(window // 2, window // 2)] * 2
            size, strides = (window, window), (stride, stride)
            x = nn.Conv(channels, size, strides, pads, use_bias=False, name=name)(x)
            if self.is_folded:
                return Affine(name=norm)(x)
            return nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name=norm)(x)

        x = nn.relu(conv(x, "conv1", "bn1", 64, 7, 2))
        margins: Any = [(1, 1), (1, 1)]
        x = nn.max_pool(x, (3, 3), (2, 2), margins)
        for stage, (channels, blocks) in enumerate(self.stages, 1):
            for block in range(blocks):
                name = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = nn.relu(conv(x, f"{name}.conv1", f"{name}.bn1", channels, 1, 1))
                y = nn.relu(conv(y, f"{name}.conv2", f"{name}.bn2", channels, 3, stride))
                y = conv(y, f"{name}.conv3", f"{name}.bn3", 4 * channels, 1, 1)
                if block == 0:
                    down = f"{name}.downsample"
                    x = conv(x, f"{down}.0", f"{down}.1", 4 * channels, 1, stride)
                x = nn.relu(x + y)
        return jnp.mean(x, (1, 2))


class Affine(nn.Module):
    """A scale and a bias for each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns x scaled and shifted."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x * scale[None, None, None] + bias[None, None, None]


class VisionTransformer(nn.Module):
    """A Vision Transformer (arXiv 2010.11929) on patches of 16 x 16 pixels, as in timm.

    Attributes:
      width: Width of a token.
      heads: Number of attention heads.
      depth: Number of blocks.
    """

    width: int
    heads: int
    depth: int = 12

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns the class token of normalised images after the last normalisation."""
        size, zeros = (_PATCH, _PATCH), nn.initializers.zeros
        x = nn.Conv(self.width, size, size, "VALID", name="patch_embed.proj")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("cls_token", zeros, (1, 1, self.width))
        position = self.param("pos_embed", zeros, (1, x.shape[1] + 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1) + position
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6)
        for block in range(self.depth):
            name = f"blocks.{block}"
            x = x + self._attention(norm(name=f"{name}.norm1")(x), f"{name}.attn")
            y = nn.Dense(4 * self.width, name=f"{name}.mlp.fc1")(norm(name=f"{name}.norm2")(x))
            x = x + nn.Dense(self.width, name=f"{name}.mlp.fc2")(nn.gelu(y, approximate=False))
        return norm(name="norm")(x)[:, 0]

    def _attention(self, x: Float[Array, "b t d"], name: str) -> Float[Array, "b t d"]:
        """Returns the output of multi-head self-attention. Layers are made in `__call__`."""
        count, tokens, width = x.shape
        split = nn.Dense(3 * width, name=f"{name}.qkv")(x)
        split = split.reshape(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(width // self.heads)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return nn.Dense(width, name=f"{name}.proj")(mixed.reshape(count, tokens, width))


NETWORKS: Mapping[str, nn.Module] = {
    "resnet50": ResNet50(),
    "vit_s16": VisionTransformer(384, 6),
    "vit_b16": VisionTransformer(768, 12),
}

# Arrays of classifiers, counters, and the layer before a classifier that nothing is read from.
_UNUSED = re.compile(r"(fc|head|heads|head_dist)\.|.*\.num_batches_tracked$")
# torchvision's names of a Vision Transformer's layers, and timm's.
_OF_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def trainable(name: str) -> nn.Module:
    """Returns a network in the form that is trained, which has no batch statistics.

    Args:
      name: A key of `NETWORKS`.
    """
    module = NETWORKS[name]
    return module.clone(is_folded=True) if isinstance(module, ResNet50) else module


def trainable_name(module: nn.Module) -> str:
    """Returns the key of `NETWORKS` of a module that `trainable` returned."""
    return next(name for name in NETWORKS if trainable(name) == module)


def folded(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters whose scales and biases include the batch statistics.

    The network computes the same with them, and has no other variables.

    Args:
      variables: Variables of a network, as `import_weights` returns them.
    """
    params = dict(variables["params"])
    for name, statistics in variables.get("batch_stats", {}).items():
        scale = params[name]["scale"] / np.sqrt(statistics["var"] + np.float32(_EPSILON))
        params[name] = {"scale": scale, "bias": params[name]["bias"] - statistics["mean"] * scale}
    return params


def shapes(name: str, input_size: int) -> dict[str, Any]:
    """Returns the shapes of a network's variables, for images of `input_size` pixels."""
    images = jax.ShapeDtypeStruct((1, input_size, input_size, 3), jnp.float32)
    return jax.eval_shape(NETWORKS[name].init, jax.random.key(0), images)


def import_weights(name: str, path: str, input_size: int) -> dict[str, Any]:
    """Returns the variables of a network from a file of torchvision's or timm's weights.

    Args:
      name: A key of `NETWORKS`.
      path: Path of an .npz, .safetensors or .pth with a state dict, read without running code.
      input_size: Side in pixels of the network's input, which a Vision Transformer's number of
        positions fixes.

    Raises:
      ValueError: The file cannot be read, an array is missing or has another shape, or the file has
        layers that the network does not have.
    """
    is_vit = isinstance(NETWORKS[name], VisionTransformer)
    if is_vit and input_size % _PATCH:
        raise ValueError(
            f"model.input_size is {input_size}, expected a multiple of {_PATCH} for {name}"
        )
    arrays = read_arrays(path)
    first = "cls_token" if is_vit else "conv1.weight"
    if is_vit and not any(key.endswith(first) for key in arrays):
        arrays = without_prefix(arrays, "class_token")
        arrays = {_timm_name(key): value for key, value in arrays.items()}
    arrays = without_prefix(arrays, first)
    used = set()

    def convert(leaf_path: Sequence[Any], like: Any) -> np.ndarray:
        *layers, leaf = (str(entry.key) for entry in leaf_path[1:])
        key = ".".join([*layers, _LEAVES.get(leaf, leaf)])
        used.add(key)
        return _converted(path, name, key, arrays.get(key), like.shape, leaf == "kernel")

    variables = jax.tree_util.tree_map_with_path(convert, shapes(name, input_size))
    unknown = sorted(key for key in arrays.keys() - used if not _UNUSED.match(key))
    if unknown:
        raise ValueError(
            f"weights file {path} has {unknown[0][:80]}, which {name} does not have; expected the "
            "weights of this network"
        )
    return variables


def _timm_name(key: str) -> str:
    for pattern, replacement in _OF_TORCHVISION:
        key = re.sub(pattern, replacement, key)
    return key


def _converted(
    path: str, name: str, key: str, value: Any, shape: tuple[int, ...], is_kernel: bool
) -> np.ndarray:
    """Returns an array of a file in Flax's layout.

    Args:
      path: Path of the file, for error messages.
      name: Name of the network, for error messages.
      key: Name of the array in the file.
      value: The array; None if the file has none.
      shape: The shape that Flax expects.
      is_kernel: Whether it is a layer's kernel, whose axes have another order.

    Raises:
      ValueError: It is missing, has another shape or is not finite.
    """
    order = [*range(len(shape))]
    if is_kernel:  # OIHW -> HWIO, or OI -> IO
        order = [2, 3, 1, 0] if len(shape) == 4 else [1, 0]
    expected = tuple(shape[order.index(axis)] for axis in range(len(shape)))
    came = "missing" if value is None else f"{value.dtype} {value.shape}"
    if value is None or value.shape != expected or value.dtype.kind != "f":
        hint = "set model.input_size to the file's" if key == "pos_embed" else "give its weights"
        raise ValueError(
            f"weights file {path}: {key[:80]} of {name} is {came}, expected float {expected}; "
            f"{hint}"
        )
    if not np.isfinite(value).all():
        raise ValueError(
            f"weights file {path}: {key} of {name} is not finite; expected finite numbers"
        )
    return np.ascontiguousarray(value.transpose(order), np.float32)


def network(
    name: str, path: str, input_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[UInt8[np.ndarray, "b s s 3"]], Float[np.ndarray, "b d"]]:
    """Returns a network with the weights of a file, on JAX's default device.

    Args:
      name: A key of `NETWORKS`.
      path: Path of the weights.
      input_size: Side in pixels of the photos.
      mean: Mean by channel, for photos in [0, 1].
      std: Standard deviation by channel.

    Raises:
      ValueError: The file does not hold the network's weights.
    """
    variables = jax.device_put(import_weights(name, path, input_size))
    shift, scale = (np.array(x, np.float32).reshape(1, 1, 1, 3) for x in (mean, std))

    @jax.jit
    def features(variables, images):
        with jax.default_matmul_precision("highest"):  # bits with logits near 0 depend on it
            return NETWORKS[name].apply(variables, (images / 255 - shift) / scale)

    return lambda images: np.asarray(features(variables, images.astype(np.float32)))
