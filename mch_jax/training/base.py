"""Stage 1: the base hashing model, which gives every image one code (Sec. 4.1).

A method is trained in one of three ways (`methods.base.Method`): by gradient descent on its
objective, in closed form on the features of the network before training, or by alternating between
the network and free codes of the training set.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Int

from mch_jax import methods
from mch_jax.methods.base import Alternating
from mch_jax.training import alternating, base_step, encodings, features, inputs, loop
from mch_jax.training.run import Run
from mch_jax.training.streams import Stream, generator

STAGE = "base"


def train(run: Run, fold: int | None = None) -> dict[str, Any]:
    """Trains a base model, or resumes its training, and returns all its parameters.

    Args:
      run: The run, from whose training photos the model learns.
      fold: Fold to leave out, for a cross-fitted model. Defaults to none.
    """
    method = methods.METHODS[run.config.method]
    stage = STAGE if fold is None else f"fold{fold}"
    positions = np.arange(len(run.dataset.train))
    if fold is not None:
        positions = positions[run.folds != fold]
    if not method.closed_form:
        params = run.initial_params
        settings = methods.training_settings(run.config.method, dict(run.config.base))
        loss = method.alternating(**settings) if method.alternating else objective_loss(run)
        trained = {**run.needed_params(params), **objective_params(run)}
        found = descend(run, stage, trained, positions, loss)
        found.pop(base_step.OBJECTIVE, None)  # serves training only
        return {**params, **found}
    layer = fit_closed_form(run, stage, positions, method.closed_form)
    params = {**run.initial_params, "hash": layer}
    if not run.model.num_classes:
        return params
    loss = functools.partial(
        base_step.label_head_loss,
        model=run.model,
        frozen=jax.device_put(run.needed_params(params)),
        label_weight=run.config.base.label_weight,
    )
    labels = {"labels": params["labels"]}
    earlier = {"hash_layer": features.fingerprint(layer)}
    return {**params, **descend(run, f"{stage}_labels", labels, positions, loss, earlier)}


def objective_loss(run: Run) -> Callable:
    """Returns the loss that `base_step.train_step` takes, for the run's objective."""
    return functools.partial(
        base_step.objective_loss,
        model=run.model,
        objective=run.objective,
        similar_fraction=run.similar_fraction,
        num_classes=run.num_classes,
        dropout=run.config.base.dropout,
        label_weight=run.config.base.label_weight,
    )


def objective_params(run: Run) -> dict[str, Any]:
    """Returns the initial parameters of the objective's batch loss, or nothing if it has none."""
    if run.objective.parameters is None:
        return {}
    rng = generator(run.config.seed, Stream.OBJECTIVE_PARAMS)
    return {base_step.OBJECTIVE: run.objective.parameters(run.num_classes, rng)}


def descend(
    run: Run,
    stage: str,
    trained: Any,
    positions: Int[np.ndarray, " p"],
    loss: Callable | Alternating,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns parameters after gradient descent, on the host.

    Args:
      run: The run.
      stage: Name of the checkpoints and of the scalars in the log.
      trained: The parameters that are trained, before the first step.
      positions: Positions of the training photos to learn from.
      loss: The loss that `base_step.train_step` takes, or what an alternating training consists of.
      earlier: Digests of earlier models that the parameters depend on (`Run.checkpoints`).
    """
    config = run.config.base
    loop.check_batch("base", config.batch_size, len(positions), "photos")
    num_steps = config.num_epochs * (len(positions) // config.batch_size)
    tx = optimizer(config, num_steps)
    state = base_step.initial_state(trained, tx)
    make_step = functools.partial(
        base_step.over_devices,
        prepare=preparation(run.config),
        tx=tx,
        num_steps=num_steps,
        batch_size=config.batch_size,
        seed=run.config.seed,
    )
    next_batches = functools.partial(batches, run)
    if isinstance(loss, Alternating):
        state = alternating.train(
            run, stage, loss, state, num_steps, positions, make_step, next_batches
        )
    else:
        step = make_step(loss)
        state = loop.train(
            run.checkpoints(stage, **(earlier or {})),
            run.log,
            stage,
            state,
            num_steps,
            lambda state, batch: step(state, batch, {}),
            functools.partial(next_batches, positions),
        )
    return jax.device_get(state.params)


def fit_closed_form(
    run: Run, stage: str, positions: Int[np.ndarray, " p"], closed_form: Callable
) -> dict[str, Any]:
    """Returns the hash layer of a method in closed form, on features of the initial network.

    Args:
      run: The run.
      stage: Name of the checkpoint.
      positions: Positions of the training photos to learn from.
      closed_form: The closed form (`methods.base.Method`).
    """
    config = run.config
    checkpoints = run.checkpoints(stage)
    layer = run.initial_params["hash"]
    restored = checkpoints.restore(layer)
    if restored is None:
        settings = methods.training_settings(config.method, dict(config.base))
        if methods.METHODS[config.method].kernel_head:
            settings["num_anchors"] = config.model.num_anchors
        whole = encodings.whole(run, run.initial_params, positions)
        key = jax.random.key(config.seed)
        labels = run.train_labels[positions]
        layer = closed_form(whole.features, labels, config.num_bits, key, **settings)
        checkpoints.save(1, layer)
    else:
        layer = restored[0]
    checkpoints.close()
    return jax.device_get(layer)


def optimizer(config: Any, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer.

    Args:
      config: Section `base` of the config.
      num_steps: Number of steps of the training.
    """
    return base_step.optimizer(
        config.optimizer,
        num_steps=num_steps,
        learning_rate=config.learning_rate,
        hash_rate=config.hash_rate,
        warmup=config.warmup,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def preparation(config: Any) -> Callable:
    """Returns the preparation of batches that `base_step.train_step` takes."""
    return functools.partial(
        base_step.prepare,
        size=config.model.input_size,
        crop_fraction=config.base.crop_fraction,
        crop_ratio=config.encode.crop_ratio,
    )


def batches(
    run: Run, positions: Int[np.ndarray, " p"], start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields endless batches of training photos with packed `labels` and `position`.

    Args:
      run: The run.
      positions: Positions of the training photos to draw from.
      start_step: First step.
    """
    config = run.config
    size, seed = config.base.batch_size, config.seed
    if config.base.train_conv:
        drawn = inputs.photos(
            run.dataset, positions, start_step,
            image_size=config.dataset.image_size, batch_size=size, seed=seed,
        )  # fmt: skip
    else:
        drawn = inputs.base_views(
            run.train_views, positions, start_step,
            batch_size=size, crop_fraction=config.base.crop_fraction, seed=seed,
        )  # fmt: skip
    for position, batch in drawn:
        yield {**batch, "labels": run.train_labels[position], "position": position}
