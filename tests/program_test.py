"""A program equals the encoder that it was made from, and JAX runs it without this package."""

import dataclasses
import functools
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run as small
from tiny_run import tiny

from mch_jax import batched, codes, export, program, regions
from mch_jax.agent import evidence
from mch_jax.data import load, photos
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import codes_file
from mch_jax.models import AlexNet, Policy
from mch_jax.training.network import random_params
from mch_jax.training.run import open_run

NAME = "encoder.stablehlo"
LOAD = """
import sys
sys.modules["mch_jax"] = None  # importing it would be an error
import jax.export
import numpy as np

with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
for count in (1, 3):
    with np.load(f"{count}.npz") as archive:
        codes, keep_prob = program.call(archive["photos"])
    np.savez(f"{count}-found.npz", codes=codes, keep_prob=keep_prob)
assert not {"flax", "optax", "orbax", "numba", "PIL"} & set(sys.modules)
"""


@pytest.fixture(autouse=True)
def flatbuffers():
    pytest.importorskip("flatbuffers")


def call(data, photos):
    found = jax.export.deserialize(bytearray(data)).call(photos)
    return tuple(np.asarray(x) for x in found)


def random_policy(policy, width):
    """Returns variables of a policy whose batch statistics are those of no fresh one."""
    variables: Any = jax.tree.map(np.asarray, policy.init(jax.random.key(0), jnp.zeros((2, width))))
    rng = np.random.default_rng(1)
    draw = lambda x: rng.uniform(0.1, 0.2, x.shape).astype(np.float32)  # noqa: E731
    return {**variables, "batch_stats": jax.tree.map(draw, variables["batch_stats"])}


def photos_of(count, seed=0):
    shape = (count, small.SIDE, small.SIDE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def subprocess_run(code, directory, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # As many devices as here share the cores, on which the last bits of a sum depend.
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    found = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def with_evidence(select, hidden=small.HIDDEN, num_anchors=0, num_bits=small.NUM_BITS):
    """Returns an encoder with the cross-fitted agent's variables, all of them random."""
    rng = np.random.default_rng(0)
    model = AlexNet(num_bits, hidden, 1 / 16, num_anchors, num_classes=3)
    params: Any = random_params(model, small.SIDE - 1, 0)
    for name in ("labels", "hash"):
        params[name] = jax.tree.map(lambda x: x * 30, params[name])
    if num_anchors:
        params["hash"]["scale"] = np.float32(1e4)
    packed = rng.integers(0, 2**num_bits, (20, 1)).astype(np.uint32)
    labels = rng.integers(0, 2, (20, 3)).astype(np.uint8)
    made_from = {
        "reference": evidence.reference(packed, labels, num_bits, 0.2)._asdict(),
        "calibration": {
            "shared": np.array([0.5, 0.5, 0, 0, 0], np.float32),
            "own": rng.normal(size=(3, 5)).astype(np.float32),
            "bias": np.zeros(3, np.float32),
        },
        "statistics": evidence.normalizer(
            rng.normal(size=(50, len(evidence.NAMES))).astype(np.float32)
        ),
    }
    policy = Policy((16, 8, 8, 4))
    variables = {**random_policy(policy, len(evidence.NAMES)), "evidence": made_from}
    return Encoder(
        model, params, policy, variables, 0.5, 0.5, small.SIDE, small.SIDE - 1, select=select
    )


def closed_form():
    """Returns an encoder of a method like ITQ on the convolutions' features, with an agent."""
    model, policy = AlexNet(40, hidden=0, width=1 / 16), Policy((16, 8, 8, 4))
    params = random_params(model, small.SIDE - 1, 0)
    width = params["hash"]["kernel"].shape[0]
    variables = random_policy(policy, 2 * (width + 40))
    return Encoder(model, params, policy, variables, 0.5, 0.5, small.SIDE, small.SIDE - 1)


ENCODERS = {
    "paper": small.encoder,
    "without an agent": lambda: dataclasses.replace(
        small.encoder(), policy=None, policy_variables={}
    ),
    "closed form, 40 bits": closed_form,
    "set": functools.partial(with_evidence, "set"),
    "kernel head, evidence": functools.partial(with_evidence, "each", hidden=0, num_anchors=5),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_program_equals_its_encoder_bit_for_bit_at_any_batch_size(name):
    encoder = ENCODERS[name]()
    data = program.serialize(encoder)
    for count in (1, 3, 9):
        packed, keep_prob = encoder.encode_regions(photos_of(count))
        found = call(data, photos_of(count))
        assert [x.dtype for x in found] == [np.uint8, np.float32]
        np.testing.assert_array_equal(found[0], codes.to_bytes(packed, encoder.model.num_bits))
        np.testing.assert_array_equal(found[1], keep_prob)
    if encoder.policy:
        assert len(np.unique(keep_prob)) > 10


def test_jax_loads_a_program_without_this_package(tmp_path):
    encoder = small.encoder()
    encoder.save(tmp_path / FILE)
    export.main([f"--run={tmp_path}", f"--program={tmp_path / 'out' / NAME}"])
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == [NAME, NAME + ".md"]
    for count in (1, 3):
        np.savez(tmp_path / f"{count}.npz", photos=photos_of(count))
    subprocess_run(LOAD, tmp_path, tmp_path / "out" / NAME)
    for count in (1, 3):
        packed, keep_prob = encoder.encode_regions(photos_of(count))
        with np.load(tmp_path / f"{count}-found.npz") as found:
            np.testing.assert_array_equal(found["codes"], codes.to_bytes(packed, small.NUM_BITS))
            np.testing.assert_array_equal(found["keep_prob"], keep_prob)


@pytest.mark.parametrize("run", ["small_run", "finished"])
def test_a_program_gives_the_codes_file_of_its_run(run, request):
    workdir = request.getfixturevalue(run)
    if run == "small_run":
        dataset, size = load("folder", workdir / "photos"), 24
    else:
        dataset, size = open_run(tiny(), workdir).dataset, tiny().encode.batch_size
    encoder = Encoder.from_run(workdir)
    images = [photos.resize(dataset.read(int(x)), small.SIDE) for x in dataset.database]
    data = program.serialize(encoder)
    found = batched.apply_all(
        functools.partial(call, data), batched.split(np.stack(images), size), size
    )
    found_codes, keep_prob = found
    file = codes_file.load(workdir / "codes" / "database.npz")
    kept = keep_prob >= encoder.keep_threshold
    kept[:, 0] = True
    words = codes.from_bytes(found_codes, file.num_bits)
    kept = np.asarray(codes.first_of_equals(words, kept))
    np.testing.assert_array_equal(found_codes[kept], file.codes)
    if run == "small_run":
        np.testing.assert_array_equal(keep_prob[kept], file.keep_prob)
    else:  # a run with frozen convolutions caches their features, rounded
        np.testing.assert_allclose(keep_prob[kept], file.keep_prob, atol=1e-4)
    np.testing.assert_array_equal(np.nonzero(kept)[0], file.item)


def test_the_description_runs_and_names_the_regions(tmp_path):
    encoder = dataclasses.replace(small.encoder(), keep_threshold=0.4999)
    encoder.save(tmp_path / FILE)
    program.save(tmp_path, tmp_path / NAME)
    text = (tmp_path / f"{NAME}.md").read_text()
    for expected in (
        f"uint8 [b, {small.SIDE}, {small.SIDE}, 3]",
        "uint8 [b, 6, 2]",
        "q = 12 bits",
        "float32 [b, 6]",
        "at least 0.4999",
        "| 0 | whole image | 0, 0, 1, 1 |",
        "| 4 | bottom right | 0.5, 0.5, 1, 1 |",
        "| 5 | middle | 0.25, 0.25, 0.75, 0.75 |",
    ):
        assert expected in text
    assert text.count("\n| ") == 2 + len(regions.NAMES)
    small.photo(7).save(tmp_path / "cat.jpg")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 12
    printed = subprocess_run('import sys; sys.modules["mch_jax"] = None\n' + code, tmp_path)
    image = photos.resize(photos.decode((tmp_path / "cat.jpg").read_bytes()), small.SIDE)
    query = encoder.query(image[None], "agent")
    assert printed == f"{query.codes[query.kept]}\n"


def test_a_failure_leaves_the_former_files(tmp_path, monkeypatch):
    small.encoder().save(tmp_path / FILE)
    former = {NAME: b"former", f"{NAME}.md": b"former"}
    for name, data in former.items():
        (tmp_path / name).write_bytes(data)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(program, "describe", fail)
    with pytest.raises(OSError, match="disk full"):
        program.save(tmp_path, tmp_path / NAME)
    assert {x.name: x.read_bytes() for x in tmp_path.iterdir() if x.name != FILE} == former
    monkeypatch.undo()
    program.save(tmp_path, tmp_path / NAME)
    assert all((tmp_path / name).read_bytes() != data for name, data in former.items())
    assert len(list(tmp_path.iterdir())) == 3


def test_runs_that_read_features_from_a_file_are_refused(tmp_path):
    encoder = small.encoder()
    head = {name: x for name, x in encoder.params.items() if not name.startswith("conv")}
    dataclasses.replace(encoder, params=head).save(tmp_path / FILE)
    with pytest.raises(ValueError, match=r"config.model.features.*expected a run") as found:
        export.main([f"--run={tmp_path}", f"--program={tmp_path / NAME}"])
    assert "\n" not in str(found.value)
    this = with_evidence("each")
    label_head = {
        "hidden_kernel": np.zeros((1, 7, 4), np.float32),
        "hidden_bias": np.zeros((1, 4), np.float32),
        "kernel": np.zeros((1, 4, 3), np.float32),
        "bias": np.zeros((1, 3), np.float32),
    }
    made_from = {**this.policy_variables["evidence"], "label_head": label_head}
    variables = {**this.policy_variables, "evidence": made_from}
    dataclasses.replace(this, policy_variables=variables).save(tmp_path / FILE)
    with pytest.raises(ValueError, match=r"config.agent.evidence_features.*expected a run"):
        export.main([f"--run={tmp_path}", f"--program={tmp_path / NAME}"])
    assert [x.name for x in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--program=p.stablehlo", "--images=x", "--out=y.npz"], "not both"),
        (["--program=p.stablehlo", "--images=x"], "not both"),
        ([], "--images and --out"),
        (["--program=p.stablehlo"], "encoder.npz"),
        (["--program=encoder.npz"], "another ending"),
        (["--program=folder.stablehlo"], "is a directory"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.stablehlo").mkdir()
    with pytest.raises(ValueError, match=expected):
        export.main([f"--run={tmp_path}", *arguments])
    assert [x.name for x in tmp_path.iterdir()] == ["folder.stablehlo"]


def test_flatbuffers_is_named_where_it_is_missing(tmp_path, monkeypatch):
    small.encoder().save(tmp_path / FILE)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match="pip install flatbuffers"):
        program.save(tmp_path, tmp_path / NAME)
