"""Flax modules: AlexNet with a hash layer, and the policy.

AlexNet follows torchvision's layout exactly, including padding, so that its weights can be
imported. The features of an image are fc7 after ReLU.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from mch_jax import regions
from mch_jax.codes import AnyArray, Encoding

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CONV_DTYPES = ("float32", "bfloat16")  # in which the convolutions may compute

# Name, channels, window, stride, padding, and whether 3 x 3 max pooling with stride 2 follows.
CONV_LAYERS = (
    ("conv1", 64, 11, 4, 2, True),
    ("conv2", 192, 5, 1, 2, True),
    ("conv3", 384, 3, 1, 1, False),
    ("conv4", 256, 3, 1, 1, False),
    ("conv5", 256, 3, 1, 1, True),
)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b rows columns c"]:
    """Returns maxima over 3 x 3 windows with stride 2, without padding.

    They are computed as the maximum of shifted slices. On the CPU XLA's own pooling and its
    gradient take seven times as long. Equal maxima share the gradient, whereas XLA's pooling
    assigns it to the first.
    """

    def pool(x: Array, axis: int) -> Array:
        end = x.shape[axis] - 2
        slices = (jax.lax.slice_in_dim(x, i, end + i, 2, axis) for i in range(3))
        return functools.reduce(jnp.maximum, slices)

    return pool(pool(x, 1), 2)


def adaptive_mean_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b rows columns c"]:
    """Returns means over windows floor(i h / s) .. ceil((i + 1) h / s), as torchvision's pooling.

    Maps of at most `size` x `size` are returned unchanged. For images smaller than 224 pixels
    torchvision would repeat cells, which adds width but no information.
    """

    def pool(x: Array, axis: int) -> Array:
        length = x.shape[axis]
        if length <= size:
            return x
        starts = [i * length // size for i in range(size)]
        ends = [-(-(i + 1) * length // size) for i in range(size)]
        windows = [
            jnp.mean(jax.lax.slice_in_dim(x, a, b, axis=axis), axis, keepdims=True)
            for a, b in zip(starts, ends, strict=True)
        ]
        return jnp.concatenate(windows, axis)

    return pool(pool(x, 1), 2)


def dropout(
    x: Float[Array, "b d"], keys: Key[Array, " b"], rate: float = 0.5
) -> Float[Array, "b d"]:
    """Returns x with a fraction `rate` of each row's entries set to zero and the others scaled up.

    A key per example makes the result independent of how a batch is split among devices.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


class AlexNet(nn.Module):
    """AlexNet with a hash layer (Sec. 4.1), from images to features and logits.

    Attributes:
      num_bits: Code length q.
      hidden: Width d of fc6 and fc7. With 0 there is neither, and the features are those of the
        convolutions (9,216 at 224 pixels), for methods that learn on fixed features.
      width: Factor on the number of channels, for small networks in tests.
      num_anchors: Number of anchors of a kernel hash layer (`KernelHead`); 0 for a linear one.
      num_classes: Number of outputs of the linear label head on the features, which the
        cross-fitted agent needs; 0 for none.
      conv_dtype: Type in which the convolutions compute, one of `CONV_DTYPES`. Parameters, the
        features and all other layers are float32 in either case.
      trunk: Network from normalised images to features, which takes the place of the convolutions
        and is trained with the other layers; None for the convolutions.
      mean: Mean by channel that is subtracted from images in [0, 1].
      std: Standard deviation by channel that images are then divided by.
    """

    num_bits: int
    hidden: int = 4096
    width: float = 1.0
    num_anchors: int = 0
    num_classes: int = 0
    conv_dtype: str = "float32"
    trunk: nn.Module | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def setup(self):
        """Creates the layers, named in torchvision's order: features.0 is conv1, and so on."""
        for name, channels, window, stride, padding, _ in () if self.trunk else CONV_LAYERS:
            channels = max(1, round(channels * self.width))
            pads = [(padding, padding)] * 2
            layer = nn.Conv(
                channels, (window, window), (stride, stride), pads, dtype=self.conv_dtype, name=name
            )
            setattr(self, name, layer)
        if self.hidden:
            init = nn.initializers.he_normal()
            self.fc6 = nn.Dense(self.hidden, kernel_init=init)
            self.fc7 = nn.Dense(self.hidden, kernel_init=init)
        if self.num_anchors:
            self.hash = KernelHead(self.num_bits, self.num_anchors)
        else:
            self.hash = nn.Dense(self.num_bits, kernel_init=nn.initializers.normal(0.01))
        if self.num_classes:
            self.labels = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))

    def conv_features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Returns the pooled conv5 map of images in [0, 255], flattened with channels last.

        With a trunk, its features are returned.
        """
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        x = (images / 255 - mean.reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3)
        if self.trunk is not None:
            return self.trunk(x)
        for name, *_, pooled in CONV_LAYERS:
            x = nn.relu(getattr(self, name)(x))
            if pooled:
                x = max_pool(x)
        x = adaptive_mean_pool(x.astype(jnp.float32), 6)
        return x.reshape(x.shape[0], -1)

    def features(
        self, conv: Float[Array, "b k"], dropout_keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """Returns fc7 after ReLU, with dropout before fc6 and fc7 if keys are given."""
        if not self.hidden:
            return conv
        x = conv
        for i, layer in enumerate((self.fc6, self.fc7)):
            if dropout_keys is not None:
                x = dropout(x, jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(dropout_keys))
            x = nn.relu(layer(x))
        return x

    def head(
        self, conv: Float[Array, "b k"], dropout_keys: Key[Array, " b"] | None = None
    ) -> Encoding:
        """Returns features and logits, given the convolutions' features."""
        features = self.features(conv, dropout_keys)
        none = jnp.zeros((features.shape[0], 0))
        label_logits = self.labels(features) if self.num_classes else none
        return Encoding(features, self.hash(features), label_logits)

    def __call__(
        self, images: Float[Array, "b h w 3"], dropout_keys: Key[Array, " b"] | None = None
    ) -> Encoding:
        """Returns features and logits of images in [0, 255]."""
        return self.head(self.conv_features(images), dropout_keys)


def mean_over_places(model: AlexNet, conv: Float[AnyArray, "*b k"]) -> Float[AnyArray, "*b c"]:
    """Returns the mean of the convolutions' features over the places of their map.

    Args:
      model: The network whose convolutions the features come from.
      conv: Features of `AlexNet.conv_features`.
    """
    channels = max(1, round(CONV_LAYERS[-1][1] * model.width))
    return conv.reshape(*conv.shape[:-1], -1, channels).astype(jnp.float32).mean(-2)


def encode(
    model: AlexNet,
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    dropout_keys: Key[Array, " b"] | None = None,
) -> Encoding:
    """Returns the encodings of images, or of their convolutional features.

    Args:
      model: Network of the base hashing model.
      params: Its parameters. For features those of the convolutions are not needed.
      batch: `image` in [0, 255] at the network's input size, or `conv`.
      dropout_keys: Random key of each example's dropout; None for no dropout.
    """
    apply: Callable[..., Any] = model.apply
    if "conv" in batch:
        conv = batch["conv"].astype(jnp.float32)
        return apply({"params": params}, conv, dropout_keys, method="head")
    return apply({"params": params}, batch["image"], dropout_keys)


def without_convolutions(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters that encoding needs where convolutional features are given."""
    return {name: layer for name, layer in params.items() if not name.startswith("conv")}


def encode_regions(
    model: AlexNet,
    params: Mapping[str, Any],
    inputs: Shaped[Array, "..."],
    boxes: Float[np.ndarray, "t 4"],
    input_size: int,
) -> Encoding:
    """Returns the encodings [b t ...] of the same regions of each image.

    Products are computed in full precision, on which bits with logits near 0 depend.

    Args:
      model: Network of the base hashing model.
      params: Its parameters.
      inputs: Images [b s s 3] in [0, 255], or the convolutional features of their regions [b t k].
      boxes: Boxes of the regions.
      input_size: Height and width of the network's input.
    """
    count, num_regions = inputs.shape[0], len(boxes)
    with jax.default_matmul_precision("highest"):
        if inputs.ndim == 4:
            crops = regions.crop_same(jnp.asarray(inputs), boxes, input_size)
            encoding: Any = model.apply({"params": params}, crops.reshape(-1, *crops.shape[2:]))
        else:
            conv = inputs.reshape(count * num_regions, -1).astype(jnp.float32)
            encoding = model.apply({"params": params}, conv, method="head")
    return Encoding(*(x.reshape(count, num_regions, -1) for x in encoding))


class KernelHead(nn.Module):
    """The hash layer of KSH: radial basis functions around anchors, then a linear map.

    Attributes:
      num_bits: Code length q.
      num_anchors: Number m of anchors.
    """

    num_bits: int
    num_anchors: int

    @nn.compact
    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, "b q"]:
        """Returns (k(f, a) - mean) A, with k(f, a) = exp(-|f - a|^2 / (2 sigma))."""
        zeros = nn.initializers.zeros
        anchors = self.param("anchors", zeros, (self.num_anchors, features.shape[-1]))
        scale = self.param("scale", nn.initializers.ones, ())
        mean = self.param("mean", zeros, (self.num_anchors,))
        projection = self.param("projection", zeros, (self.num_anchors, self.num_bits))
        kernel = jnp.exp(-squared_distance(features, anchors) / (2 * scale))
        return (kernel - mean[None]) @ projection


def squared_distance(a: Float[Array, "b d"], b: Float[Array, "n d"]) -> Float[Array, "b n"]:
    """Returns squared Euclidean distances between rows, clipped at 0."""
    squares = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None]
    # In this difference of large numbers the default precision of a GPU is not enough.
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(squares - 2 * products, 0)


class Policy(nn.Module):
    """The agent's network (Sec. 4.2): five fully connected layers with batch norm and ReLU.

    The paper specifies neither the widths nor where batch norm is applied. Here it is applied
    between each hidden layer and its ReLU.

    Attributes:
      widths: Widths of the four hidden layers.
      dropout: Dropout rate after each hidden layer, if keys are given.
    """

    widths: Sequence[int] = (1024, 512, 256, 128)
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        state: Float[Array, "b s"],
        dropout_keys: Key[Array, " b"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b 2"]:
        """Returns the logits of DISCARD and KEEP, in this order."""
        x = state
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, use_bias=False, kernel_init=nn.initializers.he_normal())(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
            x = nn.relu(x)
            if dropout_keys is not None and self.dropout:
                keys = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(dropout_keys)
                x = dropout(x, keys, self.dropout)
        # The last layer starts small, so that the first keep probabilities are close to one half.
        return nn.Dense(2, kernel_init=nn.initializers.normal(0.01))(x)
