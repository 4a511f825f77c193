"""The encoder of a run as one program, which JAX alone loads and runs."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from mch_jax import regions
from mch_jax.encoder import FILE, Encoder
from mch_jax.files.whole import first_line, whole_file

PLATFORMS = ("cpu", "cuda", "tpu")


def save(workdir: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Writes the encoder of a finished run as a program, and a description beside it.

    Args:
      workdir: The workdir of the run.
      path: The file to write. The description has the same name followed by `.md`.

    Raises:
      ValueError: The run has no encoder of photos, or `flatbuffers` is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"--program={path} is a directory; expected a file to write")
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--program needs flatbuffers; pip install flatbuffers") from None
    encoder = Encoder.from_run(workdir)
    try:
        data = serialize(encoder)
    except ValueError as error:
        raise ValueError(f"{Path(workdir) / FILE} has no program: {first_line(error)}") from None
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    with whole_file(path.with_name(path.name + ".md")) as temporary:
        temporary.write_text(describe(encoder, path.name))


def serialize(encoder: Encoder) -> bytes:
    """Returns the program of an encoder for any number of photos, as `jax.export` serializes it.

    Raises:
      ValueError: The encoder needs features from a file.
    """
    from jax import export  # not an attribute of jax until it is imported

    side, num_bytes = encoder.image_size, -(-encoder.model.num_bits // 8)
    shape = export.symbolic_shape(f"b, {side}, {side}, 3")
    photos = jax.ShapeDtypeStruct(shape, jnp.uint8)
    encoder._check(photos, regions.NUM_REGIONS)

    def encode(photos):
        outputs = encoder._encode(
            encoder.params, encoder.policy_variables, photos, regions.NUM_REGIONS
        )
        # The bytes of a codes file are those of the words, least significant first.
        shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)
        split = (outputs.packed[..., None] >> shifts) & jnp.uint32(255)
        split = split.reshape(*outputs.packed.shape[:2], -1)[..., :num_bytes]
        return split.astype(jnp.uint8), outputs.keep_prob

    return bytes(export.export(jax.jit(encode), platforms=PLATFORMS)(photos).serialize())


def describe(encoder: Encoder, name: str) -> str:
    """Returns the description of a program, in Markdown."""
    side, num_bits = encoder.image_size, encoder.model.num_bits
    boxes = regions.region_boxes(encoder.crop_ratio).tolist()
    rows = [
        f"| {i} | {title} | {', '.join(f'{x:.4g}' for x in box)} |"
        for i, (title, box) in enumerate(zip(regions.NAMES, boxes, strict=True))
    ]
    return f"""# {name}

    import jax.export
    program = jax.export.deserialize(bytearray(open("{name}", "rb").read()))
    codes, keep_prob = program.call(photos)

It runs on {", ".join(PLATFORMS)}, and needs jax and flatbuffers.

- `photos`: uint8 [b, {side}, {side}, 3], RGB, squashed to {side} x {side} pixels; any b from 1.
- `codes`: uint8 [b, 6, {-(-num_bits // 8)}], {num_bits} bits; bit i is bit i % 8 of byte i // 8.
- `keep_prob`: float32 [b, 6], 1 for the whole image. A code is kept from {encoder.keep_threshold:g}
  on; that of the whole image always is.

| region | shows | left, top, right, bottom in fractions of the sides |
| --- | --- | --- |
{chr(10).join(rows)}
"""
