"""Processes that decode uploads: the same pixels, and an end to photos that cost too much."""

import asyncio
import io
import time
from typing import Any

import numpy as np
import pytest
import small_run as small
from PIL import Image

from mch_jax.data import photos
from mch_jax.serving import decoders
from mch_jax.serving.limits import Limits, Refused

LIMITS = Limits(pixels=10**7, decoders=2, decode_seconds=20.0)


def encoded(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def repeated_scans(count, side=1000):
    """Returns a progressive JPEG whose last scan is repeated, which a decoder applies each time."""
    file = encoded(Image.new("L", (side, side), 90), quality=90, progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + count * scan + b"\xff\xd9"


async def _stays():
    return False


async def _left():
    return True


def answers(bodies, limits, has_left=_stays) -> list[Any]:
    """Returns the answer to each body, a query or a refusal, all sent at once."""

    async def run():
        pool = decoders.Decoders(small.SIDE, limits)
        pool.start()
        try:
            calls = (pool.decode(body, has_left) for body in bodies)
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            pool.stop()

    return asyncio.run(run())


def test_uploads_are_decoded_as_elsewhere():
    bodies = [encoded(small.photo(seed), "PNG") for seed in range(5)]
    for body, found in zip(bodies, answers(bodies, LIMITS), strict=True):
        pixels = photos.decode(body)
        np.testing.assert_array_equal(found.image, photos.resize(pixels, small.SIDE))
        assert found.size == pixels.shape[1::-1]


def test_a_photo_that_takes_too_long_is_ended_and_the_next_one_decoded():
    slow, quick = repeated_scans(90, side=3000), encoded(small.photo(1))
    limits = LIMITS._replace(decoders=1, decode_seconds=0.15)
    found = answers([slow], limits)[0]
    assert isinstance(found, Refused)
    assert (found.status, found.reason) == (
        413,
        "The photo takes longer than 0.15 seconds to decode.",
    )

    async def run():
        pool = decoders.Decoders(small.SIDE, limits)
        pool.start()
        try:
            with pytest.raises(Refused, match="takes longer"):
                await pool.decode(slow, _stays)
            pool._idle[0]._limits = LIMITS
            return await pool.decode(quick, _stays)
        finally:
            pool.stop()

    assert asyncio.run(run()).size == (72, 48)


def test_a_photo_that_takes_too_much_memory_is_refused():
    wide = encoded(Image.new("RGB", (3000, 3000)), "PNG")
    found, small_one = answers([wide, encoded(small.photo(1))], LIMITS._replace(decode_bytes=2**24))
    assert isinstance(found, Refused)
    assert found.status == 413
    assert small_one.size == (72, 48)


def test_many_scans_are_refused_before_they_are_decoded():
    begin = time.monotonic()
    (found,) = answers([repeated_scans(5000)], LIMITS)
    assert isinstance(found, Refused)
    assert found.status in (413, 422)
    assert time.monotonic() - begin < 20


def test_a_process_that_crashes_is_replaced():
    async def run():
        pool = decoders.Decoders(small.SIDE, LIMITS._replace(decoders=1))
        pool.start()
        try:
            for _ in range(2):
                found = await pool.decode(encoded(small.photo(1)), _stays)
                assert found.size == (72, 48)
                process = pool._idle[0]._process
                assert process is not None
                process.kill()
                process.join()
        finally:
            pool.stop()

    asyncio.run(run())


def test_costly_photos_are_decoded_one_at_a_time(monkeypatch):
    """Also where there are more of them than processes, another photo does not wait for them."""
    done, running, largest = [], [0], [0]
    decode = decoders._Decoder.decode

    def note(self, body, box, may_be_costly):
        running[0] += may_be_costly
        largest[0] = max(largest[0], running[0])
        found = decode(self, body, box, may_be_costly)
        running[0] -= may_be_costly
        if found is not None:
            done.append(found.size[0])
        return found

    monkeypatch.setattr(decoders._Decoder, "decode", note)
    quick = encoded(small.photo(1))
    found = answers(
        [repeated_scans(60, side=2000)] * 4 + [quick], LIMITS._replace(decode_seconds=60.0)
    )
    assert [one.size for one in found] == 4 * [(2000, 2000)] + [(72, 48)]
    assert largest == [1]
    assert done[-1] == 2000  # not the last


def test_photos_of_clients_that_have_left_are_not_decoded():
    (found,) = answers([encoded(small.photo(1))], LIMITS, _left)
    assert isinstance(found, Refused)
    assert found.status == 499


def test_waiting_for_a_process_has_a_limit():
    slow = repeated_scans(90, side=3000)
    found = answers([slow] * 3, LIMITS._replace(decoders=1, decode_seconds=0.15))
    assert all(isinstance(one, Refused) for one in found)
    assert {one.status for one in found} == {413, 503}
