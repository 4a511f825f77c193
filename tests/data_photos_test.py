import contextlib
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import exif
import numpy as np
import photo_fuzz
import pytest
from labelled_folder import encoded, picture
from PIL import Image

from mch_jax import data
from mch_jax.data import photos


def test_photos_are_rotated_by_their_exif_orientation():
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    image.paste((255, 0, 0), (0, 0, 10, 20))
    turned = Image.Exif()
    turned[0x0112] = 6  # rotated by 90 degrees clockwise
    pixels = data.decode(encoded(image, quality=95, exif=turned))
    assert pixels.shape == (40, 20, 3)
    assert pixels[:8, :, 0].min() > 200
    assert pixels[12:, :, 0].max() < 50


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_small_photo_is_that_of_the_whole_one(kind):
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((640, 480))
    turned = Image.Exif()
    turned[0x0112] = 6
    for image, exif_data in ((rough, None), (rough.convert("L"), None), (rough, turned)):
        content = encoded(image, kind, **({"exif": exif_data} if exif_data else {}))
        small, size = photos.decode_grey(content, 32)
        whole = data.decode(content)
        expected = np.asarray(Image.fromarray(whole).convert("L").resize((32, 32)))
        assert size == (whole.shape[1], whole.shape[0])
        assert np.abs(small.astype(int) - expected).mean() < 3
        coloured = photos.decode_small(content, 100)
        resized = Image.fromarray(whole).resize(coloured.shape[1::-1], Image.Resampling.BILINEAR)
        assert sorted(coloured.shape) == [3, 75, 100]
        assert np.abs(coloured.astype(int) - np.asarray(resized)).mean() < 3
        assert photos.decode_small(content, 1000).shape == whole.shape


@pytest.mark.parametrize("image", [
    Image.new("CMYK", (90, 60), (0, 255, 255, 0)), Image.new("RGB", (90, 60), (255, 0, 0)),
])  # fmt: skip
def test_a_small_grey_photo_has_the_lightness_of_its_colour(image):
    small, size = photos.decode_grey(encoded(image, quality=95), 8)
    assert size == (90, 60)
    np.testing.assert_allclose(small, 76, atol=8)


def test_a_damaged_photo_has_the_same_reason_in_small():
    content = encoded(picture(0), quality=95)
    for cut in (b"", b"no photo", content[: len(content) // 2]):
        reasons = []
        for decode in (
            lambda x: photos.decode(x, "a"), lambda x: photos.decode_grey(x, 8, "a"),
            lambda x: photos.decode_small(x, 8, "a"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="'a' does not decode: ") as error:
                decode(cut)
            reasons.append(str(error.value))
        assert len(set(reasons)) == 1


def test_cmyk_becomes_rgb():
    pixels = data.decode(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), quality=95))
    assert pixels.shape == (6, 8, 3)
    np.testing.assert_allclose(pixels[3, 4], [255, 0, 0], atol=6)


def test_sixteen_bits_keep_the_upper_eight():
    grey = np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16)
    pixels = data.decode(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0x12], [0x80, 0xFF]])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 255, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 2, 4))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.paste(1, (2, 0, 4, 4))
    for file in (encoded(clear, "PNG"), encoded(palette, "PNG", transparency=1)):
        pixels = data.decode(file)
        np.testing.assert_array_equal(pixels[0, [0, 3]], [[0, 0, 255], [255, 255, 255]])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    pixels = data.decode(encoded(picture(0).convert(mode), "PNG"))
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8


def test_too_many_pixels_are_refused_before_decoding():
    """The file is a few bytes of a PNG whose header states 9,000 x 9,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (9_000, 60_000):
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(
            b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        )
        bomb += chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match="'bomb.png' does not decode: .*pixels"):
            data.decode(bomb, "bomb.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about damaged TIFF tags.
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_broken_files_raise_value_error_only(kind):
    whole = encoded(picture(3), kind)
    rng = np.random.default_rng(0)
    for cut in (0, 1, 10, len(whole) // 4, len(whole) // 2):
        with pytest.raises(ValueError, match="'a photo' does not decode"):
            data.decode(whole[:cut], "a photo")
    for _ in range(40):
        scrambled = np.frombuffer(whole, np.uint8).copy()
        scrambled[rng.integers(len(whole), size=6)] = rng.integers(256, size=6)
        # Some changes are harmless. Otherwise the only error must be ValueError.
        with contextlib.suppress(ValueError):
            assert data.decode(scrambled.tobytes()).dtype == np.uint8


def test_an_error_of_any_type_in_pillow_is_a_damaged_photo(monkeypatch):
    def fails(_):
        raise AttributeError("'IFDRational' object has no attribute 'encode'")

    monkeypatch.setattr(photos, "_pixels", fails)
    with pytest.raises(ValueError, match=r"'a\.jpg' does not decode: 'IFDRational' object"):
        data.decode(encoded(picture(0), quality=80), "a.jpg")


def test_scans_are_counted_and_bounded():
    plain = encoded(picture(0), quality=80)
    progressive = encoded(picture(0), quality=80, progressive=True)
    assert photos.num_scans(plain) == 1
    assert 2 <= photos.num_scans(progressive) <= 20
    assert photos.num_scans(encoded(picture(0), "PNG")) == 0
    end = progressive.rindex(b"\xff\xda")
    bomb = progressive[:-2] + progressive[end:-2] * 200 + progressive[-2:]
    assert photos.num_scans(bomb) == photos.num_scans(progressive) + 200
    hidden = bomb.replace(progressive[end:-2], b"no marker" + progressive[end:-2])
    assert photos.num_scans(hidden) == photos.num_scans(bomb)
    for file in (bomb, hidden):
        with pytest.raises(ValueError, match=r"scans of a JPEG, at most 100"):
            data.decode(file)
    trailer = plain + b"\xff\xda\x00\x02" * 500  # such as the video behind a moving photo
    assert photos.num_scans(trailer) == 1
    np.testing.assert_array_equal(data.decode(trailer), data.decode(plain))


def test_modes_of_several_bytes_have_fewer_pixels(monkeypatch):
    monkeypatch.setattr(photos, "MAX_PIXELS", 40 * 30)
    grey = Image.fromarray(np.zeros((30, 40), np.int32))
    assert data.decode(encoded(picture(0), "PNG")).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="1,200 pixels of the mode I, at most 300 of it"):
        data.decode(encoded(grey, "TIFF"))
    assert data.decode(encoded(grey.crop((0, 0, 20, 15)), "TIFF")).shape == (15, 20, 3)


@pytest.mark.parametrize("kind", photos.FORMATS)
def test_damaged_photos_and_exif_data_are_read_or_refused(kind):
    found = photo_fuzz.run(kind, 60)
    assert not found.failures
    assert found.read >= 5
    assert sum(found.reasons.values()) >= 5
    assert found.slowest < 10


def test_exif_data_that_cannot_be_written_again_is_a_damaged_photo():
    """Pillow turns the photo by writing its EXIF data again, which fails for a maker of numbers."""
    file = encoded(picture(0), quality=80, exif=exif.exif(exif.TURNED))
    with pytest.raises(ValueError, match=r"'a\.jpg' does not decode: 'IFDRational' object"):
        data.decode(file, "a.jpg")


def test_large_images_are_converted_in_strips(monkeypatch):
    image = picture(0).resize((70, 50)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    file = encoded(image, "PNG")
    whole = data.decode(file)
    monkeypatch.setattr(photos, "_STRIP", 70 * 7)
    np.testing.assert_array_equal(data.decode(file), whole)


def test_threads_share_the_bytes_that_are_decoded_at_one_time():
    budget = photos._Budget(100)
    at_once, largest, lock = [0], [0], threading.Lock()

    def spend(num_bytes):
        with budget.spend(num_bytes):
            with lock:
                at_once[0] += min(num_bytes, 100)
                largest[0] = max(largest[0], at_once[0])
            time.sleep(0.002)
            with lock:
                at_once[0] -= min(num_bytes, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(spend, [30, 70, 50, 1000, 10] * 8))
    assert (at_once[0], budget._free) == (0, 100)
    assert 70 <= largest[0] <= 100


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_wide_modes_count_more_bytes(mode):
    narrow, wide = (Image.new(m, (1000, 500)) for m in ("L", mode))
    assert photos.num_bytes(wide) > photos.num_bytes(narrow)
    assert photos.num_bytes(narrow, scans=10) > photos.num_bytes(narrow)
