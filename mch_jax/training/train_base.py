"""Stage 1: the base hashing model, which gives every image one code (Sec. 4.1)."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.struct import PyTreeNode
from jaxtyping import Array, Float, Int, Key, UInt8

from mch_jax import data, pairs, regions
from mch_jax.methods import PROJECTIONS, adsh, ksh
from mch_jax.methods import base as losses
from mch_jax.training import logs, loop, parallel, termination
from mch_jax.training.run import Run

STAGE = "base"
CROP_OF_256 = 0.875  # a 224 pixel crop of a 256 pixel photo, the usual augmentation


class BaseState(PyTreeNode):
    """What changes while the base model trains."""

    step: Any
    params: Any
    opt_state: Any


def is_closed_form(method: str) -> bool:
    """Returns whether a method is fitted in one go, on fixed features."""
    return method in PROJECTIONS or method == "ksh"


def optimizer(run: Run, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer, whose learning rate falls to zero along half a cosine.

    The hash layer and the label head, which start from nothing, learn `hash_rate` times as fast;
    biases do not decay.
    """
    config = run.config.base

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    def rule(rate: float) -> optax.GradientTransformation:
        warmup = round(config.warmup * num_steps)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if warmup else rate, rate, warmup, num_steps
        )
        if config.optimizer == "adam":
            return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, decays),
            optax.sgd(schedule, momentum=config.momentum),
        )

    def label(params: Mapping[str, Any]) -> dict[str, str]:
        return {name: "head" if name in ("hash", "labels") else "body" for name in params}

    rate = config.learning_rate
    return optax.partition({"body": rule(rate), "head": rule(rate * config.hash_rate)}, label)


def augment(
    images: UInt8[Array, "b h w 3"],
    keys: Key[Array, " b"],
    *,
    size: int,
    crop_fraction: float,
    crop_ratio: float,
) -> Float[Array, "b s s 3"]:
    """Returns random crops, half of them mirrored, each by its image's own key.

    Args:
      images: photos.
      keys: one for each.
      size: of the network's input.
      crop_fraction: probability that a crop is a region as small as those of encoding.
      crop_ratio: side ratio of those regions.
    """

    def draw(key):
        flip, kind, place = jax.random.split(key, 3)
        box = jnp.where(
            jax.random.uniform(kind) < crop_fraction,
            regions.random_box(place, crop_ratio),
            regions.random_box(place, CROP_OF_256),
        )
        return box, jax.random.bernoulli(flip)

    boxes, flips = jax.vmap(draw)(keys)
    return regions.crop(images, boxes, size, flips)


def train_step(
    state: BaseState,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    shared: Mapping[str, Array],
    *,
    loss_fn: Callable,
    prepare: Callable,
    tx: optax.GradientTransformation,
    num_steps: int,
) -> tuple[BaseState, dict[str, Array]]:
    """Returns the state after one step on a device's part of a batch, and scalars.

    Args:
      state: before the step.
      batch: `conv` or `image`, and what else the loss needs.
      key: of the whole training.
      shared: what the loss needs of the whole training set.
      loss_fn: (params, batch, example keys, progress, shared) -> loss and scalars.
      prepare: (batch, example keys) -> batch, as the network takes it.
      tx: the optimizer.
      num_steps: of the whole training.
    """
    keys = parallel.example_keys(key, state.step, len(batch["row"]))
    split = jax.vmap(lambda k: jax.random.split(k))(keys)
    batch = prepare(batch, split[:, 0])
    progress = state.step / num_steps
    grads, scalars = jax.grad(loss_fn, has_aux=True)(
        state.params, batch, split[:, 1], progress, shared
    )
    grads, scalars = parallel.mean((grads, scalars))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return BaseState(step=state.step + 1, params=params, opt_state=opt_state), scalars


def base_loss(params, batch, keys, progress, shared, *, run: Run):
    """Returns the base loss of a batch and its scalars (Sec. 3.1), with the label head's."""
    del shared
    encoding = run.apply(params, batch, keys if run.config.base.dropout else None)
    loss, scalars = losses.base_loss(
        run.objective,
        encoding.logits,
        batch["labels"],
        progress,
        run.similar_fraction,
        axis_name=parallel.AXIS,
    )
    return with_label_loss(loss, scalars, params, encoding.features, batch["labels"], run)


def with_label_loss(loss, scalars, params, features, labels, run: Run):
    """Returns a loss and its scalars with the label head's loss added, where there is a head.

    At weight 0 the head learns by itself: the features take no gradient from it.
    """
    if not run.model.num_classes:
        return loss, scalars
    weight = run.config.base.label_weight
    features = features if weight else jax.lax.stop_gradient(features)
    logits = features @ params["labels"]["kernel"] + params["labels"]["bias"][None]
    targets = pairs.unpack_labels(labels, run.model.num_classes)
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets).sum(1).mean()
    return loss + (weight or 1.0) * entropy, {**scalars, "label_loss": entropy}


def view_batches(
    run: Run, start_step: int, index: Int[np.ndarray, " k"]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of cached features: a photo, mirrored or not, or one of its random regions.

    Batch t depends on the seed and t alone. `index` are places in the training set.
    """
    config, views, size = run.config.base, run.train_views, run.config.base.batch_size
    for step in itertools.count(start_step):
        epoch, place = divmod(step, len(index) // size)
        order = np.random.default_rng([run.config.seed, 1, epoch]).permutation(len(index))
        chosen = index[order[place * size : (place + 1) * size]]
        rng = np.random.default_rng([run.config.seed, 2, step])
        region = 2 + rng.integers(max(views.shape[1] - 2, 1), size=size)
        view = np.where(rng.random(size) < config.crop_fraction, region, rng.integers(2, size=size))
        row = run.dataset.train[chosen]
        conv = views[chosen, view]
        yield {"conv": conv, "labels": run.labels[row], "row": row, "index": chosen}


def image_batches(
    run: Run, start_step: int, index: Int[np.ndarray, " k"]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of photos as uint8; crops are made on the device."""
    config = run.config
    for batch in data.batches(
        run.dataset,
        run.dataset.train[index],
        config.dataset.image_size,
        config.base.batch_size,
        seed=config.seed,
        start_step=start_step,
    ):
        row = batch["row"]
        place = run.train_place[row]
        yield {"image": batch["image"], "labels": run.labels[row], "row": row, "index": place}


def train(run: Run, fold: int | None = None) -> dict[str, Any]:
    """Trains a base model, or goes on with it, and returns all its parameters.

    Args:
      run: whose training photos to learn from.
      fold: leave this one's out, for a cross-fitted model; none when not given.
    """
    places = np.arange(len(run.dataset.train))
    stage = STAGE if fold is None else f"fold{fold}"
    if fold is not None:
        places = places[run.folds != fold]
    if is_closed_form(run.config.method):
        params = {**run.initial_params, "hash": fit(run, stage, places)}
        if not run.model.num_classes:
            return params
        trained = {"labels": params["labels"]}
        loss_fn = functools.partial(
            head_loss, run=run, frozen=jax.device_put(run.needed_params(params))
        )
        stage = f"{stage}_labels"
    else:
        params = run.initial_params
        trained = run.needed_params(params)
        loss_fn = functools.partial(base_loss, run=run)
    loop.check_batch("base", run.config.base.batch_size, len(places), "photos")
    num_steps = run.config.base.num_epochs * (len(places) // run.config.base.batch_size)
    tx = optimizer(run, num_steps)
    state = BaseState(step=jnp.int32(0), params=trained, opt_state=tx.init(trained))
    if run.config.method == "adsh":
        state = train_adsh(run, state, tx, num_steps, stage, places)
    else:
        step = make_step(run, loss_fn, tx, num_steps)
        state = loop.train(
            run,
            stage,
            state,
            num_steps,
            lambda state, batch: step(state, batch, {}),
            lambda start: input_batches(run, start, places),
        )
    return {**params, **jax.device_get(state.params)}


def head_loss(params, batch, keys, progress, shared, *, run: Run, frozen):
    """Returns the loss of the label head alone, on features that are fixed."""
    del keys, progress, shared
    features = run.apply({**frozen, **params}, batch).features
    return with_label_loss(jnp.float32(0), {}, params, features, batch["labels"], run)


def make_step(run: Run, loss_fn: Callable, tx, num_steps: int) -> Callable:
    """Returns the step over all devices: (state, batch, shared) -> state and scalars."""
    config = run.config

    def prepare(batch, keys):
        if "conv" in batch:
            return batch
        images = augment(
            batch["image"],
            keys,
            size=config.model.input_size,
            crop_fraction=config.base.crop_fraction,
            crop_ratio=config.encode.crop_ratio,
        )
        return {**batch, "image": images}

    one_device = functools.partial(
        train_step, loss_fn=loss_fn, prepare=prepare, tx=tx, num_steps=num_steps
    )
    num_devices = parallel.usable_devices(config.base.batch_size)
    mapped = parallel.over_devices(one_device, (None, 0, None, None), num_devices)
    key = jax.random.key(config.seed)

    def step(state, batch, shared):
        return mapped(state, parallel.share_out(batch, num_devices), key, shared)

    return step


def input_batches(
    run: Run, start_step: int, index: Int[np.ndarray, " k"]
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator over batches of training photos from one step on."""
    make = image_batches if run.config.base.train_conv else view_batches
    return make(run, start_step, index)


class AdshState(PyTreeNode):
    """ADSH's network, and the discrete codes of the training set."""

    base: Any
    database_codes: Any


def train_adsh(
    run: Run, base: BaseState, tx, num_steps: int, stage: str, places: Int[np.ndarray, " n"]
) -> BaseState:
    """Trains ADSH: by turns the network on a sample, and the training set's discrete codes.

    Codes at encoding come from the network, as those of queries do: the discrete ones are made
    from labels. A killed run goes on from the last whole turn, one that SIGTERM ended from the step
    it was in.
    """
    config = run.config.base
    labels = jnp.asarray(run.labels[run.dataset.train[places]])
    rank = np.zeros(len(run.dataset.train), np.int32)  # of a training photo among the places
    rank[places] = np.arange(len(places))
    rank = jnp.asarray(rank)
    sample_size = min(len(places), max(config.adsh_sample, config.batch_size))
    per_turn = config.adsh_epochs * (sample_size // config.batch_size)
    num_turns = max(num_steps // per_turn, 1)

    def loss_fn(params, batch, keys, progress, shared):
        encoding = run.apply(params, batch, keys if config.dropout else None)
        relaxed = run.objective.relax(encoding.logits, progress)
        similar = pairs.similarity(batch["labels"], labels)
        target = adsh.soft_similarity(similar, shared["dissimilar"])
        codes = shared["codes"]
        loss = adsh.train_loss(
            relaxed, codes[rank[batch["index"]]], codes, target, gamma=config.adsh_gamma
        )
        scalars = {"loss": loss}
        return with_label_loss(loss, scalars, params, encoding.features, batch["labels"], run)

    @jax.jit
    def moved(codes, relaxed, sample, dissimilar):
        target = adsh.soft_similarity(pairs.similarity(labels[sample], labels), dissimilar)
        return adsh.update_database_codes(codes, relaxed, sample, target, gamma=config.adsh_gamma)

    def draw(turn):
        rng = np.random.default_rng([run.config.seed, 3, turn])
        sample = np.sort(rng.permutation(len(places))[:sample_size])
        return sample, adsh.dissimilar_target(pairs.similarity(labels[sample], labels))

    def update_codes(params, codes, sample, dissimilar):
        logits = run.encode_train(params, places[sample]).logits
        return moved(codes, run.objective.relax(jnp.asarray(logits), 1.0), sample, dissimilar)

    step = make_step(run, loss_fn, tx, num_steps)
    checkpoints = run.checkpoints(stage)
    state = AdshState(base=base, database_codes=jnp.zeros((len(places), run.config.num_bits)))
    state, done = checkpoints.restore(state) or (state, 0)
    if not done:
        # Against codes of zero the network would learn nothing in its first turn but to be small.
        codes = update_codes(base.params, state.database_codes, *draw(0))
        state = AdshState(base=base, database_codes=codes)
    run.log.rewind(stage, done)
    guard = logs.FiniteGuard(stage)
    turns = range(done // per_turn, num_turns)
    with termination.deferred():
        for turn in logs.progress(turns, num_turns, f"{stage}, turns of ADSH", done // per_turn):
            sample, dissimilar = draw(turn)
            base, codes = state.base, state.database_codes
            batches = input_batches(run, done, places[sample])
            scalars, stops = {}, False
            while done < (turn + 1) * per_turn and not stops:
                shared = {"codes": codes, "dissimilar": dissimilar}
                base, scalars = step(base, next(batches), shared)
                done += 1
                guard.watch(done, scalars)
                stops = loop.asked_to_stop()
            guard.check()
            is_whole = done == (turn + 1) * per_turn
            if is_whole:
                codes = update_codes(base.params, codes, sample, dissimilar)
                run.log.write(stage, done, **scalars)
            state = AdshState(base=base, database_codes=codes)
            if done:
                checkpoints.save(done, state)
            if stops:
                logging.warning("SIGTERM: stopped after step %d of %s", done, stage)
                break
    checkpoints.close()
    termination.stop_if(loop.asked_to_stop())
    return state.base


def fit(run: Run, stage: str, places: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """Returns the hash layer of a method in closed form, on features of the initial network."""
    config = run.config
    checkpoints = run.checkpoints(stage)
    layer = run.initial_params["hash"]
    restored = checkpoints.restore(layer)
    if restored is None:
        features = run.encode_train(run.initial_params, places).features
        key = jax.random.key(config.seed)
        if config.method == "ksh":
            labels = run.labels[run.dataset.train[places]]
            anchors = config.model.num_anchors
            layer = ksh.fit(features, labels, config.num_bits, num_anchors=anchors, key=key)
        else:
            layer = PROJECTIONS[config.method](features, config.num_bits, key)
        checkpoints.save(1, layer)
    else:
        layer = restored[0]
    checkpoints.close()
    return jax.device_get(layer)
