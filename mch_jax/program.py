"""The encoder of a run as one program, which runs without this package.

`jax.export` writes the computation and its constants as StableHLO, for any number of photos.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, UInt8, UInt32

from mch_jax import regions
from mch_jax.encoder import FILE, Encoder
from mch_jax.files.whole import whole_file

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"


def save(workdir: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Writes the encoder of a finished run as a program, and its description beside it.

    Files of these names are replaced.

    Args:
      workdir: Workdir of the run.
      path: The file to write, which ends in `.stablehlo`. The description has the same name
        followed by `.md`.

    Raises:
      ValueError: The path has another ending or is a directory, the run has no encoder of photos,
        or flatbuffers is not installed.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"--program={path} has another ending; expected a name with {SUFFIX}")
    if path.is_dir():
        raise ValueError(f"--program={path} is a directory; expected a name for a file")
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "--program needs the package flatbuffers; run pip install flatbuffers"
        ) from None
    encoder = Encoder.load(Path(workdir) / FILE)
    try:
        encoder.image_function()
    except ValueError as error:
        reason = str(error).partition(";")[0]
        raise ValueError(
            f"{Path(workdir) / FILE} has no program of photos: {reason}; expected a run whose base "
            "model and agent read photos alone"
        ) from None
    program = serialize(encoder)
    readme = path.with_name(path.name + ".md")
    # Both are complete before either gets its name.
    with whole_file(path) as new_program, whole_file(readme) as new_readme:
        new_program.write_bytes(program)
        new_readme.write_text(describe(encoder, path.name), encoding="utf-8")


def serialize(encoder: Encoder) -> bytes:
    """Returns the program of an encoder for any number of photos, as `jax.export` serializes it.

    Raises:
      ValueError: The base model or the agent reads features from a file.
    """
    side, num_bits = encoder.image_size, encoder.model.num_bits
    outputs_of = encoder.image_function()

    def encode(photos):
        outputs = outputs_of(photos)
        return code_bytes(outputs.packed, num_bits), outputs.keep_prob

    shape = export.symbolic_shape(f"b, {side}, {side}, 3")
    photos = jax.ShapeDtypeStruct(tuple(shape), jnp.uint8)
    return bytes(export.export(jax.jit(encode), platforms=PLATFORMS)(photos).serialize())


def code_bytes(packed: UInt32[Array, "b t w"], num_bits: int) -> UInt8[Array, "b t bytes"]:
    """Returns packed codes as the bytes of a codes file, as `codes.to_bytes` does on the host."""
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32).reshape(1, 1, 1, 4)
    split = (packed[..., None] >> shifts) & jnp.uint32(255)
    split = split.reshape(*packed.shape[:2], 4 * packed.shape[2])
    return split[..., : -(-num_bits // 8)].astype(jnp.uint8)


def _rows(boxes: Float[np.ndarray, "6 4"]) -> str:
    """Returns the rows of the table of regions."""
    rows = (
        f"| {number} | {name} | {', '.join(f'{side:.6g}' for side in box)} |"
        for number, (name, box) in enumerate(zip(regions.NAMES, boxes.tolist(), strict=True))
    )
    return "\n".join(rows)


def describe(encoder: Encoder, name: str) -> str:
    """Returns the description of an encoder's program, in Markdown.

    Args:
      encoder: The encoder.
      name: Name of the program's file.
    """
    side, num_bits = encoder.image_size, encoder.model.num_bits
    num_bytes = -(-num_bits // 8)
    threshold = repr(float(encoder.keep_threshold))
    return f"""\
# {name}

The encoder of a run of mch_jax. It computes the codes of six regions of each photo, and the
probability with which the agent keeps each code. It runs on {", ".join(PLATFORMS)}, and needs jax
and flatbuffers (`pip install jax flatbuffers`); this example also needs Pillow.

```python
import jax.export
import numpy as np
from PIL import Image, ImageOps

with open("{name}", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
photo = ImageOps.exif_transpose(Image.open("cat.jpg")).convert("RGB")
photo = np.asarray(photo.resize(({side}, {side}), Image.Resampling.BILINEAR))
codes, keep_prob = (np.asarray(x) for x in program.call(photo[None]))
kept = keep_prob >= {threshold}
kept[:, 0] = True  # the code of the whole photo is always kept
print(codes[kept])
```

Input:

- `photos`, uint8 [b, {side}, {side}, 3], any b from 1: RGB, resized to {side} x {side} pixels by
  Pillow's bilinear filter, without keeping the aspect ratio.

Outputs:

- `codes`, uint8 [b, 6, {num_bytes}]: codes of q = {num_bits} bits. Bit i is bit i % 8 of byte
  i // 8, and is 1 where the logit is not negative. Padding bits are 0.
- `keep_prob`, float32 [b, 6]: the probability of keeping each code, 1 for the whole photo. A code
  is kept if it is at least {threshold}. Codes files store equal codes of a photo once.

| region | shows | left, top, right, bottom in fractions of width and height |
| --- | --- | --- |
{_rows(regions.region_boxes(encoder.crop_ratio))}

On the CPU, the outputs equal those of the run's encoder bit for bit, for the same batch and number
of cores. Elsewhere the last bits of a logit may differ, and with them a bit of a code whose logit
is almost 0.

jax {jax.__version__} wrote this program. `jax.export` promises that versions that are up to six
months newer load it.
"""
