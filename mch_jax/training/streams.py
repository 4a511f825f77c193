"""The random streams of a run on the host.

Each kind of random choice has a stream of its own, so that one does not depend on how often another
is made. A generator depends on the run's seed, the stream and the position in the stream alone: a
run that is resumed needs no saved generator.
"""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What is drawn at random, and at which positions."""

    INITIAL_PARAMS = 0  # the network before training
    BASE_ORDER = 1  # order of the training photos in each epoch of base training
    BASE_VIEWS = 2  # cached view of each photo, at each step of base training
    TURN_SAMPLE = 3  # sample of each turn of alternating training
    AGENT_ORDER = 4  # order of the training photos in each epoch of the paper's recipe
    AGENT_VIEWS = 5  # region of each photo, at each step of the paper's recipe
    CROSS_FIT_BATCH = 5  # regions of a batch, at each step of the cross-fitted recipe
    RANDOM_CONTROL = 6  # codes that the random control keeps
    FOLDS = 7  # fold of each training photo
    OBJECTIVE_PARAMS = 8  # parameters of the base loss before training


def generator(seed: int, stream: Stream, *position: int) -> np.random.Generator:
    """Returns the random generator of a stream at a position.

    A run uses one recipe of the agent, so that AGENT_VIEWS and CROSS_FIT_BATCH may share a number.

    Args:
      seed: Seed of the run.
      stream: What is drawn.
      *position: Epoch, step or turn, where the stream has several.
    """
    return np.random.default_rng([seed, int(stream), *position])
