"""Nothing is compiled after the first step of a training."""

import jax
import pytest
from tiny_run import tiny

from mch_jax import pipeline
from mch_jax.training import loop

EVENT = "/jax/core/compile/backend_compile_duration"
_compilations: list[str] = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == EVENT:
        _compilations.append(event)


@pytest.fixture
def per_step(monkeypatch):
    """Counts the programs that each step of each stage compiles."""
    train, counts = loop.train, {}

    def watched(checkpoints, log, stage, state, num_steps, step, *rest, **options):
        def counted(state, batch):
            before = len(_compilations)
            result = step(state, batch)
            jax.block_until_ready(result)
            counts.setdefault(stage, []).append(len(_compilations) - before)
            return result

        return train(checkpoints, log, stage, state, num_steps, counted, *rest, **options)

    monkeypatch.setattr(loop, "train", watched)
    jax.monitoring.register_event_duration_secs_listener(_listen)
    return counts


@pytest.mark.parametrize("train_conv", [False, True])
def test_steps_of_base_and_agent_compile_once(per_step, tmp_path, train_conv):
    config = tiny(base__train_conv=train_conv, base__num_epochs=1)
    pipeline.run_stages(config, tmp_path, "agent")
    assert per_step.keys() == {"base", "agent"}
    for stage, (first, *later) in per_step.items():
        assert first > 0, "the listener hears nothing"
        assert len(later) >= 4
        assert sum(later) == 0, f"{stage} compiled again: {later}"
