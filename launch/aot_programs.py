"""The programs of the mission that `aot_check.py` compiles, at the paper's sizes.

Each entry of `PROGRAMS` is a function from devices to a lowered program of abstract arrays. A batch
has 256 photos and a code 64 bits; training has COCO's 10,000 photos, and the evaluator COCO's 5,000
queries and its database of 117,218 photos.
"""

import functools
from typing import Any

NUM_TRAIN, NUM_ITEMS, NUM_QUERIES = 10_000, 117_218, 5_000
BATCH, NUM_BITS, NUM_CLASSES = 256, 64, 80
SIMILAR_FRACTION = 0.35  # about that of COCO; a constant of the programs


def settings() -> Any:
    """Returns the default config with the sizes of this check."""
    from configs import default

    config: Any = default.get_config()
    config.num_bits, config.base.batch_size, config.agent.batch_size = NUM_BITS, BATCH, BATCH
    return config


def array(shape: tuple[int, ...], dtype: Any = "float32") -> Any:
    """Returns an abstract array."""
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def key() -> Any:
    """Returns an abstract random key."""
    import jax

    return jax.eval_shape(lambda: jax.random.key(0))


def network() -> tuple[Any, Any]:
    """Returns AlexNet with its abstract parameters."""
    import jax

    from mch_jax.models import AlexNet

    model = AlexNet(NUM_BITS)
    made = jax.eval_shape(model.init, key(), array((1, 224, 224, 3)))
    return model, made["params"]


def inputs(cached: bool, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns abstract photos, or their convolutional features."""
    if cached:
        return {"conv": array((*shape, 9216), "float16")}
    return {"image": array((*shape, 256, 256, 3), "uint8")}


def labels(*shape: int) -> Any:
    """Returns abstract packed labels."""
    return array((*shape, -(-NUM_CLASSES // 32)), "uint32")


def words(*shape: int) -> Any:
    """Returns abstract packed codes."""
    return array((*shape, NUM_BITS // 32), "uint32")


def base_step(devices: Any, cached: bool = False) -> Any:
    """Lowers a training step of DCH on photos, or on features of fixed convolutions."""
    import jax

    from mch_jax import methods, models
    from mch_jax.training import base, base_step, parallel

    config, num_steps, n = settings(), 1000, len(devices)
    model, params = network()
    params = models.without_convolutions(params) if cached else params
    tx = base.optimizer(config.base, num_steps)
    loss_fn = functools.partial(
        base_step.objective_loss, model=model, objective=methods.objective("dch", NUM_BITS),
        similar_fraction=SIMILAR_FRACTION, num_classes=NUM_CLASSES, dropout=True, label_weight=0.0,
    )  # fmt: skip
    step = functools.partial(
        base_step.train_step, loss_fn=loss_fn, prepare=base.preparation(config), tx=tx,
        num_steps=num_steps,
    )  # fmt: skip
    state = jax.eval_shape(lambda p: base_step.initial_state(p, tx), params)
    each = (n, BATCH // n)
    batch = {**inputs(cached, each), "labels": labels(*each)}
    over = parallel.mapped_over(step, (None, 0, None, None), devices)
    return over.lower(state, batch, key(), {})


def train_set(n: int) -> dict[str, Any]:
    """Returns the abstract training set, split over n devices, as `paper.shared_train_set` does."""
    part = -(-NUM_TRAIN // n)
    packed, packed_labels = words(1).shape[-1], labels(1).shape[-1]
    return {
        "packed": array((n, packed, part), "uint32"),
        "labels": array((n, packed_labels, part), "uint32"),
        "count": array((n, part), "int32"),
    }


def encodings(n: int) -> Any:
    """Returns abstract encodings of a batch, split over n devices."""
    from mch_jax.codes import Encoding

    each = (n, BATCH // n)
    return Encoding(array((*each, 4096)), array((*each, NUM_BITS)), array((*each, 0)))


def loss_table() -> Any:
    """Returns the loss at each distance."""
    from mch_jax import methods
    from mch_jax.training import paper

    return paper.loss_table(methods.objective("dch", NUM_BITS), NUM_BITS, SIMILAR_FRACTION)


def agent_step(devices: Any, cached: bool = False) -> Any:
    """Lowers a training step of the agent by the paper's recipe."""
    import jax

    from mch_jax import models
    from mch_jax.agent import state as agent_state
    from mch_jax.training import paper, parallel, policy

    config, n = settings(), len(devices)
    model, params = network()
    params = models.without_convolutions(params) if cached else params
    tx = policy.optimizer(config)
    step = functools.partial(
        paper.train_step, model=model, crop_ratio=config.encode.crop_ratio, input_size=224,
        loss_table=loss_table(), num_train=NUM_TRAIN, update=policy.update(config, tx),
    )  # fmt: skip
    width = agent_state.width(4096, NUM_BITS)
    state = jax.eval_shape(lambda: policy.initial_state(config, width, tx))
    each = (n, BATCH // n)
    batch = {**inputs(cached, each), **encodings(n)._asdict(), "labels": labels(*each)}
    over = parallel.mapped_over(step, (None, 0, 0, None, None), devices)
    return over.lower(state, batch, train_set(n), params, key())


def cross_fit_step(devices: Any) -> Any:
    """Lowers a training step of the agent by the cross-fitted recipe."""
    import jax

    from mch_jax.agent import evidence
    from mch_jax.training import cross_fit, parallel, policy

    config, n, width = settings(), len(devices), len(evidence.NAMES)
    tx = policy.optimizer(config)
    step = functools.partial(cross_fit.train_step, update=policy.update(config, tx))
    state = jax.eval_shape(lambda: policy.initial_state(config, width, tx))
    each = (n, BATCH // n)
    batch = {"state": array((*each, width)), "reward": array(each)}
    return parallel.mapped_over(step, (None, 0, None), devices).lower(state, batch, key())


def reward(devices: Any) -> Any:
    """Lowers the rewards of a batch against the training set on all devices (Eq. 6)."""
    from mch_jax import collectives
    from mch_jax.training import paper, parallel

    n, table = len(devices), loss_table()

    def rewards(packed, region_packed, batch_labels, shared):
        packed, region_packed, batch_labels = collectives.gather(
            (packed, region_packed, batch_labels), parallel.AXIS
        )
        return paper.summed_rewards(
            packed, region_packed, batch_labels, shared, table, NUM_TRAIN, NUM_BITS
        )

    over, each = parallel.mapped_over(rewards, (0, 0, 0, 0), devices, ()), (n, BATCH // n)
    return over.lower(words(*each), words(*each), labels(*each), train_set(n))


def on_one(function: Any, devices: Any, *arguments: Any, **static: Any) -> Any:
    """Lowers a jitted function of abstract arrays on the first device."""
    import jax
    import numpy as np

    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("one",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    return function.lower(*placed, **static)


def encoder(devices: Any) -> Any:
    """Lowers the encoding of six regions of a batch of photos, with the policy."""
    import jax

    from mch_jax.agent import state as agent_state
    from mch_jax.encoder import Encoder
    from mch_jax.training import policy

    config = settings()
    model, params = network()
    actor, width = policy.network(config), agent_state.width(4096, NUM_BITS)
    variables = dict(jax.eval_shape(actor.init, key(), array((1, width))))
    made = Encoder(model, params, actor, variables, 0.5, 0.5, 256, 224)
    images = inputs(False, (BATCH,))["image"]
    return on_one(made._encode, devices, params, variables, images, num_regions=6)


def evaluator(devices: Any) -> Any:
    """Lowers the histograms of COCO's queries against its database, with six codes per photo."""
    from mch_jax import histograms

    lw = labels(1).shape[-1]
    return on_one(
        histograms._device_histogram, devices, words(NUM_QUERIES),
        array((6, NUM_BITS // 32, NUM_ITEMS), "uint32"), labels(NUM_QUERIES),
        array((lw, NUM_ITEMS), "uint32"), num_bits=NUM_BITS,
    )  # fmt: skip


def evidence(devices: Any) -> Any:
    """Lowers the evidence of a batch of photos against the training set."""
    from mch_jax.agent import evidence

    reference = evidence.Reference(
        words(NUM_TRAIN), array((NUM_TRAIN, NUM_CLASSES), "uint8"),
        array((NUM_TRAIN, 2, NUM_BITS + 1)),
    )  # fmt: skip
    width = evidence.POSTERIOR_WIDTH
    calibration = {
        "shared": array((width,)), "own": array((NUM_CLASSES, width)), "bias": array((NUM_CLASSES,))
    }  # fmt: skip
    return on_one(
        evidence.states, devices, words(BATCH, 6), array((BATCH, 6, NUM_BITS)),
        array((BATCH, 6, NUM_CLASSES)), calibration, reference,
    )  # fmt: skip


def training_bytes(program: str, num_devices: int) -> dict[str, int | None]:
    """Returns what a step of base training has to hold on one device; None for other programs.

    `state_bytes` are parameters, gradients and the optimizer's state. `activation_bytes` are the
    arrays of the forward pass that JAX keeps for the backward pass, without the parameters.
    """
    import jax

    from mch_jax import models
    from mch_jax.training import base

    if not program.startswith("base_step"):
        return {"state_bytes": None, "activation_bytes": None}
    cached, size = program.endswith("cached"), BATCH // num_devices
    model, params = network()
    params = models.without_convolutions(params) if cached else params
    batch = inputs(True, (size,)) if cached else {"image": array((size, 224, 224, 3))}
    keys = jax.eval_shape(lambda k: jax.random.split(k, size), key())

    def backward(params, batch, keys):
        return jax.vjp(lambda p: models.encode(model, p, batch, keys), params)[1]

    jaxpr = jax.make_jaxpr(backward)(params, batch, keys).jaxpr
    kept = {id(x): x.aval for x in jaxpr.outvars if x not in jaxpr.invars}
    opt_state = jax.eval_shape(base.optimizer(settings().base, 1000).init, params)
    held = [params, params, opt_state]
    return {
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held)),
        "activation_bytes": sum(x.size * x.dtype.itemsize for x in kept.values()),
    }


PROGRAMS = {
    "reward": reward,
    "evidence": evidence,
    "evaluator": evaluator,
    "agent_step_cached": functools.partial(agent_step, cached=True),
    "cross_fit_step": cross_fit_step,
    "agent_step": agent_step,
    "encoder": encoder,
    "base_step_cached": functools.partial(base_step, cached=True),
    "base_step": base_step,
}
