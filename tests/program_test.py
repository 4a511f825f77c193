"""A program equals the encoder it was made from, and JAX alone runs it."""

import subprocess
import sys

import numpy as np
import pytest

from mch_jax import codes, export
from mch_jax.encoder import FILE
from tests import small_run

pytest.importorskip("flatbuffers")

LOAD = """
import sys, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
codes, keep_prob = program.call(np.load(sys.argv[2]))
assert not any(name.startswith(("mch_jax", "flax")) for name in sys.modules)
np.savez(sys.argv[3], codes=codes, keep_prob=keep_prob)
"""


@pytest.mark.parametrize("count", [1, 3])
def test_program_equals_the_encoder(tmp_path, count):
    encoder, path = small_run.encoder(), tmp_path / "out" / "encoder.stablehlo"
    encoder.save(tmp_path / FILE)
    export.main([f"--run={tmp_path}", f"--program={path}"])
    assert sorted(x.name for x in path.parent.iterdir()) == [path.name, path.name + ".md"]
    shape = (count, small_run.SIDE, small_run.SIDE, 3)
    photos = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.save(tmp_path / "photos.npy", photos)
    files = [path, tmp_path / "photos.npy", tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, files)], check=True, cwd=tmp_path)
    packed, keep_prob = encoder.encode_regions(photos)
    with np.load(files[2]) as found:
        np.testing.assert_array_equal(found["codes"], codes.to_bytes(packed, small_run.NUM_BITS))
        np.testing.assert_allclose(found["keep_prob"], keep_prob, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--program=p", "--images=x", "--out=y.npz"], "not both"),
        ([], "--images and --out"),
        (["--program=p"], "encoder.npz"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=expected):
        export.main([f"--run={tmp_path}", *arguments])
    assert not list(tmp_path.iterdir())
