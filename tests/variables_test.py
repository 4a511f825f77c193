"""The shapes that the file of an encoder has to have, against those that Flax gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import variables
from mch_jax.agent import state
from mch_jax.models import AlexNet, Policy


def zeros(init, *inputs) -> Any:
    shapes = jax.eval_shape(init, jax.random.key(0), *(jnp.zeros(x) for x in inputs))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize("size", [63, 64, 95, 130, 224])
@pytest.mark.parametrize(
    "model",
    [
        AlexNet(12, hidden=16, width=1 / 16),
        AlexNet(33, hidden=0, width=1 / 64),
        AlexNet(8, hidden=8, width=0.05, num_anchors=5, num_classes=3),
        AlexNet(8, hidden=0, width=1 / 16, num_anchors=5),
    ],
)
def test_shapes_are_those_of_flax(model, size):
    params = zeros(model.init, (1, size, size, 3))["params"]
    kernel = params["hash"]["anchors" if model.num_anchors else "kernel"]
    num_features = kernel.shape[1 if model.num_anchors else 0]
    policy = Policy((6, 5, 4, 3))
    agent = zeros(policy.init, (1, state.width(num_features, model.num_bits)))
    variables.check(model, params, policy, agent, size)
    variables.check(model, params, None, {}, size)
    head = {name: layer for name, layer in params.items() if not name.startswith("conv")}
    variables.check(model, head, None, {}, size)
    with pytest.raises(ValueError, match="expected float32"):
        variables.check(model.copy(num_bits=7), params, None, {}, size)
    with pytest.raises(ValueError, match="expected float32"):
        variables.check(model, params, Policy((6, 5, 4, 2)), agent, size)
