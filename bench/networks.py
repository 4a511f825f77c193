"""Benchmarks of AlexNet's forward pass and of training steps of the base model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bench import measure, peers
from bench.workload import (
    CONFIG,
    FLOPS,
    HEAD_FLOPS,
    INPUT,
    MODEL,
    NUM_BITS,
    OBJECTIVE,
    base_params,
    by_flops,
    conv_features,
    needed_params,
    pixels,
    stepping,
    train_labels,
)
from mch_jax.training import base, base_step, parallel


def torch_inputs(torch, count, channels_last):
    """Returns the same images as a float tensor [b, 3, h, w] of PyTorch."""
    x = torch.from_numpy(pixels(count, INPUT).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x.contiguous()


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


def cached_step(quick: bool) -> list[measure.Row]:
    """Measures a training step of fc6, fc7 and the hash layer on cached features."""
    count = 16 if quick else 128
    return step_rows(
        "train step, cached convolutions", False, {"conv": conv_features(count)},
        lambda torch: torch.nn.Sequential(*peers.head(torch, NUM_BITS)), conv_inputs, quick, None,
    )  # fmt: skip
