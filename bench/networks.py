"""Benchmarks of AlexNet, training steps, the agent's reward and step, encoding, reading photos."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import inputs, measure, peers
from configs import coco_dch
from mch_jax import agent, codes, data, methods, models, pairs, regions
from mch_jax.agent import state as agent_state
from mch_jax.encoder import Encoder
from mch_jax.models import AlexNet
from mch_jax.training import base, base_step, network, paper, parallel, policy

NUM_BITS, SIZE, INPUT = 64, 256, 224
HIDDEN = 4096
# Operations of AlexNet at 224 pixels with a hash layer of 64 bits, two for each multiply-add.
CONV_FLOPS = 2 * 655_566_528
HEAD_FLOPS = 2 * (9216 * 4096 + 4096 * 4096 + 4096 * NUM_BITS)
FLOPS = CONV_FLOPS + HEAD_FLOPS


CONFIG: Any = coco_dch.get_config()
MODEL: Any = AlexNet(num_bits=NUM_BITS, hidden=HIDDEN)
OBJECTIVE = methods.objective("dch", NUM_BITS)


class Labels(NamedTuple):
    """Random labels of a training set.

    Attributes:
      multi_hot: uint8 [n c].
      packed: uint32 [n lw].
      similar_fraction: Fraction of similar pairs.
    """

    multi_hot: np.ndarray
    packed: np.ndarray
    similar_fraction: float


@functools.cache
def train_labels(num_train: int) -> Labels:
    """Returns random labels of a training set."""
    labels = inputs.labels(np.random.default_rng(0), num_train)
    packed = pairs.pack_labels(labels)
    return Labels(labels, packed, pairs.similar_fraction(packed))


@functools.cache
def base_params():
    """Returns random parameters of the base model."""
    return jax.device_put(network.random_params(MODEL, INPUT, 0))


def needed_params(train_conv: bool):
    """Returns the parameters that encoding needs, with or without those of the convolutions."""
    return base_params() if train_conv else models.without_convolutions(base_params())


def pixels(count: int, size: int) -> np.ndarray:
    """Returns random images uint8 [b, h, w, 3]."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def torch_inputs(torch, count, channels_last):
    """Returns the same images as a float tensor [b, 3, h, w] of PyTorch."""
    x = torch.from_numpy(pixels(count, INPUT).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x.contiguous()


def by_flops(per_item: float):
    """Returns the limit of float32 arithmetic: its name and the items per second it allows."""
    return "float32 operations, items/s", measure.flops_per_second() / per_item


def best_layout(timings):
    """Returns the name of PyTorch's faster layout."""
    names = [name for name in timings if name.startswith("PyTorch")]
    return min(names, key=lambda name: timings[name].seconds, default="PyTorch")


def forward(quick: bool) -> list[measure.Row]:
    """Measures AlexNet's forward pass on one query, a batch of encoding and one of training."""
    return [forward_row(count, quick) for count in ((1, 4) if quick else (1, 16, 32))]


def forward_row(count: int, quick: bool) -> measure.Row:
    """Returns the row of a forward pass on `count` images."""
    params = base_params()
    images = jnp.asarray(pixels(count, INPUT), jnp.float32)
    apply = jax.jit(lambda params, x: MODEL.apply({"params": params}, x).logits)
    calls = {"ours": lambda: apply(params, images)}
    torch = measure.torch_or_none()
    if torch is not None:
        peer = peers.alexnet(torch, NUM_BITS).eval()
        for name in ("NCHW", "channels_last"):
            x = torch_inputs(torch, count, name == "channels_last")
            layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
            copy = peers.alexnet(torch, NUM_BITS).eval().to(memory_format=layout)
            copy.load_state_dict(peer.state_dict())
            calls[f"PyTorch {name} f32"] = torch.inference_mode()(lambda copy=copy, x=x: copy(x))
    timings = measure.interleaved(calls, 2 if quick else 9)
    return measure.row(
        f"AlexNet forward, batch {count}", count, "images/s", timings, peer=best_layout(timings),
        least=0.95, limit=by_flops(FLOPS), note="224 pixels, float32",
    )  # fmt: skip


def stepping(step, state):
    """Returns a call that makes one step after another, since a step consumes its state."""
    state = jax.tree.map(jnp.copy, state)

    def call(*rest):
        nonlocal state
        state, scalars = step(state, *rest)
        return state, scalars

    return call


def dch_step(train_conv: bool, similar_fraction: float, num_steps=1000):
    """Returns a call that makes a training step of DCH on a prepared batch."""
    tx = base.optimizer(CONFIG.base, num_steps)
    state = base_step.initial_state(needed_params(train_conv), tx)
    loss_fn = functools.partial(
        base_step.objective_loss, model=MODEL, objective=OBJECTIVE,
        similar_fraction=similar_fraction, dropout=True, label_weight=0.0,
    )  # fmt: skip
    one = functools.partial(
        base_step.train_step, loss_fn=loss_fn, prepare=lambda batch, keys: batch, tx=tx,
        num_steps=num_steps,
    )  # fmt: skip
    step = stepping(parallel.over_devices(one, (None, 0, None, None), 1), state)
    key = jax.random.key(0)
    return lambda batch: step(batch, key, {})


def step_rows(title, train_conv, batch, torch_network, torch_batch, quick, least):
    """Returns the row of a training step, compared with PyTorch's layouts of memory."""
    count = len(next(iter(batch.values())))
    labels = train_labels(1000)
    batch = {**batch, "labels": labels.packed[:count]}
    step = dch_step(train_conv, labels.similar_fraction)
    batch = jax.device_put(parallel.split_batch(batch, 1))
    calls = {"ours": lambda: step(batch)}
    torch = measure.torch_or_none()
    if torch is not None:
        multi_hot = torch.from_numpy(labels.multi_hot[:count].astype(np.float32))
        similar = multi_hot @ multi_hot.T > 0
        layouts = ("NCHW", "channels_last") if torch_batch is torch_inputs else ("",)
        for name in layouts:
            peer = torch_network(torch).train()
            if name == "channels_last":
                peer = peer.to(memory_format=torch.channels_last)
            optimizer, x = peers.sgd(torch, peer), torch_batch(torch, count, bool(name[3:4]))
            if torch_batch is torch_inputs:
                x = torch_inputs(torch, count, name == "channels_last")
            calls[f"PyTorch {name} f32".replace("  ", " ")] = functools.partial(
                peers.train_step, torch, peer, optimizer, x, similar
            )
    timings = measure.interleaved(calls, 2 if quick else 5)
    return [
        measure.row(
            title, count, "images/s", timings, peer=best_layout(timings), least=least,
            limit=by_flops(3 * (FLOPS if train_conv else HEAD_FLOPS)),
            note=f"batch {count}, DCH, dropout, momentum, float32",
        )
    ]  # fmt: skip


def train(quick: bool) -> list[measure.Row]:
    """Measures a training step of the base model that trains all layers."""
    count = 4 if quick else 32
    batch = {"image": pixels(count, INPUT).astype(np.float32)}
    return step_rows(
        "AlexNet train step", True, batch,
        lambda torch: peers.alexnet(torch, NUM_BITS), torch_inputs, quick, 0.95,
    )  # fmt: skip


def conv_inputs(torch, count, _):
    """Returns random features of fixed convolutions for PyTorch."""
    return torch.from_numpy(conv_features(count).astype(np.float32))


def conv_features(count):
    """Returns random features of fixed convolutions, in the form in which they are cached."""
    x = np.random.default_rng(2).normal(0, 1, (count, 9216))
    return np.maximum(x, 0).astype(np.float16)


def cached_step(quick: bool) -> list[measure.Row]:
    """Measures a training step of fc6, fc7 and the hash layer on cached features."""
    count = 16 if quick else 128
    return step_rows(
        "train step, cached convolutions", False, {"conv": conv_features(count)},
        lambda torch: torch.nn.Sequential(*peers.head(torch, NUM_BITS)), conv_inputs, quick, None,
    )  # fmt: skip


# The agent ------------------------------------------------------------------------------------


def reward_inputs(batch_size, num_train, num_bits=NUM_BITS):
    """Returns codes of the training set, of a region of each of its first items, and labels."""
    rng = np.random.default_rng(3)
    labels = inputs.labels(rng, num_train)
    train = inputs.code_file(rng, labels, 1, num_bits)
    region = inputs.code_file(rng, labels[:batch_size], 1, num_bits)
    return train, region, labels


def signs(torch, file):
    """Returns the codes of a file as a float tensor of -1 and +1."""
    bits = np.unpackbits(file.codes, axis=1, bitorder="little")[:, : file.num_bits]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


def compiled_reward(num_train, table, num_bits=NUM_BITS):
    """Returns a compiled function that computes the reward from packed codes and labels."""

    @jax.jit
    def rewards(own, region, labels, train, train_labels, count):
        histogram = agent.reward_histogram(
            own[:, None], region, labels, train, train_labels, count, num_bits
        )
        return agent.rewards(histogram, table, num_train)

    return rewards


def reward(quick: bool) -> list[measure.Row]:
    """Measures the reward (Eq. 6) for B = 256 photos, N = 117,218 training photos and 64 bits."""
    batch_size, num_train = (32, 20_000) if quick else (256, 117_218)
    train, region, labels = reward_inputs(batch_size, num_train)
    similar_fraction = train_labels(1000).similar_fraction
    table = jnp.asarray(paper.loss_table(OBJECTIVE, NUM_BITS, similar_fraction))
    words, region_words = (codes.from_bytes(x.codes, NUM_BITS) for x in (train, region))
    packed_labels = pairs.pack_labels(labels)
    arguments = jax.device_put(
        (
            words[:batch_size], region_words, packed_labels[:batch_size],
            np.ascontiguousarray(words.T), np.ascontiguousarray(packed_labels.T),
            np.ones(num_train, np.int32),
        )
    )  # fmt: skip
    rewards = compiled_reward(num_train, table)
    calls = {"ours": lambda: rewards(*arguments)}
    torch, peer = measure.torch_or_none(), "PyTorch, plain"
    rest = {}
    if torch is not None:
        multi_hot = torch.from_numpy(labels.astype(np.float32))
        own = signs(torch, train)
        calls[peer] = functools.partial(
            peers.reward, torch, own[:batch_size], signs(torch, region), multi_hot[:batch_size],
            own, multi_hot, similar_fraction,
        )  # fmt: skip
        theirs, ours = np.asarray(calls[peer]()), np.asarray(calls["ours"]())
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-6)
        rest["peer_memory_mb"] = measure.peak_memory(calls[peer])
    timings = measure.interleaved(calls, 3 if quick else 5)
    pairs_ = batch_size * num_train / 1e6
    # Two distances of one 64-bit word each for a pair.
    limit = ("XOR and popcount of words in the L2, M pairs/s", measure.popcounts_per_second() / 2e6)
    return [
        measure.row(
            "agent's reward", pairs_, "M pairs/s", timings, peer=peer, least=25, limit=limit,
            memory_mb=measure.peak_memory(calls["ours"]),
            note=f"B = {batch_size}, N = {num_train:,}, {NUM_BITS} bits; under 20 MB; the limit "
            "leaves out relevance and the histogram",
            **rest,
        )
    ]  # fmt: skip


def agent_steps(table, num_train, num_devices):
    """Returns the whole step, the policy's part of it for one device, and the first state."""
    tx = policy.optimizer(CONFIG)
    state = policy.initial_state(CONFIG, agent_state.width(HIDDEN, NUM_BITS), tx)
    update = policy.update(CONFIG, tx)
    one = functools.partial(
        paper.train_step, model=MODEL, crop_ratio=CONFIG.encode.crop_ratio, input_size=INPUT,
        loss_table=table, num_train=num_train, update=update,
    )  # fmt: skip
    mapped = parallel.over_devices(one, (None, 0, 0, None, None), num_devices)
    return stepping(mapped, state), update, state


def agent_setup(train_conv, batch_size, num_train):
    """Returns the whole step, and its parts by name."""
    labels = train_labels(num_train)
    train, _, _ = reward_inputs(batch_size, num_train)
    logits = np.unpackbits(train.codes, axis=1, bitorder="little").astype(np.float32) - 0.5
    table = paper.loss_table(OBJECTIVE, NUM_BITS, labels.similar_fraction)
    train_set = jax.device_put(paper.shared_train_set(logits, labels.packed, 1))
    step, update, state = agent_steps(table, num_train, 1)
    rng, key = np.random.default_rng(4), jax.random.key(0)
    params = needed_params(train_conv)
    batch = {
        "features": np.maximum(rng.normal(0, 1, (batch_size, 4096)), 0).astype(np.float32),
        "logits": logits[:batch_size], "label_logits": np.zeros((batch_size, 0), np.float32),
        "labels": labels.packed[:batch_size],
    }  # fmt: skip
    if train_conv:
        batch["image"] = pixels(batch_size, SIZE)
    else:
        batch["conv"] = conv_features(batch_size)
    shared = jax.device_put(parallel.split_batch(batch, 1))
    batch = jax.device_put(batch)

    @jax.jit
    def crop(images):
        keys = jax.random.split(key, len(images))
        boxes = jax.vmap(lambda k: regions.random_box(k, 0.5))(keys)
        return regions.crop(images, boxes, INPUT, largest=0.5)

    region = {"image": crop(batch["image"])} if train_conv else {"conv": batch["conv"]}
    apply = jax.jit(lambda params, x: models.encode(MODEL, params, x).logits)
    rewards = compiled_reward(num_train, jnp.asarray(table))
    packed = np.asarray(codes.pack(codes.sign(jnp.asarray(batch["logits"]))))
    few = (
        packed, packed[::-1].copy(), labels.packed[:batch_size], train_set["packed"][0],
        train_set["labels"][0], train_set["count"][0],
    )  # fmt: skip
    policy_step = stepping(parallel.over_devices(update, (None, 0, 0, 0), 1), state)
    policy_inputs = jax.device_put(
        (
            np.zeros((1, batch_size, agent_state.width(HIDDEN, NUM_BITS)), np.float32),
            np.ones((1, batch_size), np.float32),
            jax.random.split(key, (1, batch_size)),
        )
    )
    parts = {
        "region's forward": lambda: apply(params, region),
        "reward": lambda: rewards(*few),
        "policy": lambda: policy_step(*policy_inputs),
    }
    if train_conv:
        parts = {"crop": lambda: crop(batch["image"])} | parts
    return lambda: step(shared, train_set, params, key), parts


def torch_agent_step(torch, train_conv, batch_size, num_train):
    """Returns the peer's training step of the agent."""
    train, _, labels = reward_inputs(batch_size, num_train)
    multi_hot = torch.from_numpy(labels.astype(np.float32))
    if train_conv:
        peer = peers.alexnet(torch, NUM_BITS).eval().to(memory_format=torch.channels_last)
        images = torch.from_numpy(pixels(batch_size, SIZE).transpose(0, 3, 1, 2).copy())
        whole = torch.from_numpy(
            pixels(batch_size, INPUT).transpose(0, 3, 1, 2).astype(np.float32) / 255
        ).contiguous(memory_format=torch.channels_last)

        def region():
            x = peers.crops(torch, images, INPUT)
            return x.contiguous(memory_format=torch.channels_last)
    else:
        peer = torch.nn.Sequential(*peers.head(torch, NUM_BITS)).eval()
        whole = region = torch.from_numpy(conv_features(batch_size).astype(np.float32))
    width = agent_state.width(HIDDEN, NUM_BITS)
    peer_policy = peers.policy(torch, width, tuple(CONFIG.agent.widths)).train()
    return functools.partial(
        peers.agent_step, torch, (peer[:-1], peer[-1]), peer_policy, peers.sgd(torch, peer_policy),
        whole, region, multi_hot[:batch_size], signs(torch, train), multi_hot,
    )  # fmt: skip


def agent_rows(title, train_conv, quick, rounds):
    """Returns the row of a training step of the agent, with the shares of its parts."""
    batch_size, num_train = (16, 10_000) if quick else (256, 117_218)
    step, parts = agent_setup(train_conv, batch_size, num_train)
    calls, peer = {"ours": step}, "PyTorch, plain"
    torch = measure.torch_or_none()
    if torch is not None:
        calls[peer] = torch_agent_step(torch, train_conv, batch_size, num_train)
    timings = measure.interleaved(calls, 1 if quick else rounds)
    spent = {x: t.seconds for x, t in measure.interleaved(parts, 1 if quick else 3).items()}
    whole = timings["ours"].seconds
    shares = ", ".join(f"{name} {1e3 * t:.0f} ms ({t / whole:.0%})" for name, t in spent.items())
    flops = batch_size * (FLOPS if train_conv else HEAD_FLOPS)
    return [
        measure.row(
            title, batch_size, "images/s", timings, peer=peer, least=3,
            limit=by_flops(flops / batch_size),
            note=f"B = {batch_size}, N = {num_train:,}, {NUM_BITS} bits. Alone: {shares}. The peer "
            "runs the base model on the whole photo and the region, and compares whole matrices of "
            "pairs; ours keeps the encodings of whole photos",
        )
    ]  # fmt: skip


def agent_photos(quick: bool) -> list[measure.Row]:
    """Measures a training step of the agent on photos: crops, base model, reward and policy."""
    return agent_rows("agent step, photos", True, quick, 3)


def agent_cached(quick: bool) -> list[measure.Row]:
    """Measures a training step of the agent on cached features."""
    return agent_rows("agent step, cached convolutions", False, quick, 5)


# Encoding and reading -------------------------------------------------------------------------


def encoding(quick: bool) -> list[measure.Row]:
    """Measures encoding of six regions per photo to codes and keep probabilities."""
    count = 2 if quick else 16
    agents = policy.network(CONFIG)
    state = jnp.zeros((1, agent_state.width(HIDDEN, NUM_BITS)))
    variables = jax.jit(agents.init)(jax.random.key(0), state)
    encoder = Encoder(
        model=MODEL, params=base_params(), policy=agents, policy_variables=variables,
        crop_ratio=CONFIG.encode.crop_ratio, keep_threshold=CONFIG.encode.keep_threshold,
        image_size=SIZE, input_size=INPUT,
    )  # fmt: skip
    images = jnp.asarray(pixels(count, SIZE))
    ready = jnp.asarray(pixels(6 * count, INPUT), jnp.float32)
    apply = jax.jit(lambda params, x: MODEL.apply({"params": params}, x).logits)
    crop = jax.jit(lambda x: regions.crop_same(x, regions.region_boxes(0.5), INPUT))
    peer = "the network alone, on ready crops"
    timings = measure.interleaved(
        {
            "ours": lambda: encoder.encode_regions(images),
            peer: lambda: apply(encoder.params, ready),
            "crop": lambda: crop(images),
        },
        2 if quick else 5,
    )
    share = timings["crop"].seconds / timings["ours"].seconds
    return [
        measure.row(
            "encoding, six regions a photo", count, "photos/s", timings, peer=peer, least=0.9,
            limit=by_flops(6 * FLOPS), note=f"batch {count}; the crops alone take {share:.0%}",
        )
    ]  # fmt: skip


def reading(quick: bool) -> list[measure.Row]:
    """Measures reading: JPEGs are decoded and resized to batches of 256 x 256 in threads."""
    from PIL import Image

    from mch_jax.data import loader, photos

    rng, count = np.random.default_rng(5), 32 if quick else 256
    files = [inputs.jpeg(rng) for _ in range(16)]
    rows = np.arange(count)
    dataset = data.Dataset(
        name="bench", classes=("a",), ids=rows.astype(np.str_),
        labels=np.ones((count, 1), np.uint8), query=rows[:0], database=rows, train=rows,
        read=lambda row: photos.decode(files[row % 16]),
        sizes=np.zeros((count, 2), np.int32),
    )  # fmt: skip
    peer = "Pillow alone, one thread"

    def alone():
        import io

        for row in rows[: count // 4]:
            image = Image.open(io.BytesIO(files[row % 16])).convert("RGB")
            np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    def ours():
        for _ in loader.epoch(dataset, rows, SIZE, 32):
            pass

    batch = pixels(32, SIZE)
    timings = measure.interleaved({"ours": ours, peer: alone}, 2 if quick else 5)
    sent = measure.interleaved({"": lambda: jax.device_put(batch)}, 5)[""].seconds
    return [
        measure.row(
            "reading photos: decode, resize, batch", count, "photos/s", timings, peer=peer,
            peer_work=count // 4,
            note=f"640 x 480, {np.mean([len(x) for x in files]) / 1e3:.0f} kB, squashed to 256; "
            f"a batch of 32 goes to the device in {1e3 * sent:.2f} ms",
        )
    ]  # fmt: skip
