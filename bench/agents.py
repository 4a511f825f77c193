"""Benchmarks of the agent's reward and of its training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bench import inputs, limits, measure, peers
from bench.workload import (
    CONFIG,
    FLOPS,
    HEAD_FLOPS,
    HIDDEN,
    INPUT,
    MODEL,
    NUM_BITS,
    OBJECTIVE,
    SIZE,
    by_flops,
    conv_features,
    needed_params,
    pixels,
    stepping,
    train_labels,
)
from mch_jax import agent, codes, models, pairs, regions
from mch_jax.agent import state as agent_state
from mch_jax.training import paper, parallel, policy


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
    limit = ("XOR and popcount of words in the L2, M pairs/s", limits.popcounts_per_second() / 2e6)
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
    policy_step = stepping(jax.jit(update, donate_argnums=0), state)
    policy_inputs = jax.device_put(
        (
            np.zeros((batch_size, agent_state.width(HIDDEN, NUM_BITS)), np.float32),
            np.ones(batch_size, np.float32),
            jax.random.split(key, batch_size),
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
