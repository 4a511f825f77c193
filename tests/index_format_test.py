"""The formats of a saved index: which one is written, and that earlier ones open."""

import base64
import json
import lzma

import numpy as np
import pytest

from mch_jax.index import BucketIndex

# The files of an index of format 2, with a base, a delta and removed items, as they were written
# before there was a format 3: JSON of their bytes in hexadecimal.
FORMAT_2 = (
    "/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4ClVBpZdAD2IiEZUbATBmxSIhSW9mGDKIfaDUYKvW/E34l5/i9Fc99UICPZRbsYi"
    "1ksYJkdwmLFCCDmLUYWMOtRpRE0U78Pw/5+Tf30UWwBjEdMLBqOLpGJqed7duG3Wz/6S/2vUrBf4ZjYgfpMTLKBr6wgwqwqI"
    "5Ytoth5pzQaexBQs+QgHniPrDc3ANSzDAx5R+YdSiKLMyeXroxtRREMztV+F6B++0TFNDCI4WQi6wjfRNGFU7ESlBqpi8KxM"
    "Q5Rvm1cZhz27XwsHrHGERjmy7oqUfKj7VfNYlumheaD1sGvia33a3kG8JX7fFzHD4xcEhayBAY3pUQyL1ZHhOMr4HAdyNPCN"
    "3drk9oHXSG4caxPYxaFEzAhmqfqas/8zhP93s7jQJ2zrAh4UxXonX8RgvmkwdVyrfdX58dW6JjSvEBcPGjojUlNF9uFVaHln"
    "wWvmIsra9Aa8GnLtKFcRZC3RPy0Dvp9LZRdVg33nu1GbL/XTFfBPuj8YGqRDCrny6Fc3xP+Opk9X4G2tnyMBJbPZrMwYhB/q"
    "wnKgNQwyYFZ6H6dwtUP2t9k3yGg/cRyAzPDdQMRTwbZqXlW+fXFCLNgppHcO0ZfKBasl6/0iL09ea9s/gq6UWLTtE56D4Naz"
    "qVmJTwA73Wvvu9/DxuTDOHzdP0BWpQ3Nj5coCBnN7JjwehUbO7qi3Uq5IoOpd7o1BF046z2MWoEjHdFLzpV+G61GVZc+Bb8K"
    "Un438e3DUmgnglrK8vdWH4bgQmL12uYhEt+F75LFp+BgndMLTllhJSI93Ri+7wnLqo0ue30AZgMKp1mzsjl4e+KQBE/qx8dH"
    "sf7tkLqKF5OpEWHxsoBtQFKlmkFtfIzkvTcg6Q1T+PabvfCQv23RpBZakCFbd8nl/T7upnI75zqarr/srOpDHxtZb+5RxS5G"
    "chzZbaWAvaHedsKMYkYFxImSvjOEdP+XksFntYCz5vXe66MZsUt/aBPLhVdVdtyiKd3qjH2PepuvFJWjmjZBQFyOdNlvGweG"
    "GxkOnrYBqYKM/tcl1HMgVV3YAc3IWgOydwpSxsaXry6RL+dBaFAvlrMdp/vmMIrDqHCJf8WFBeKX+GGLBB2SrVjQzoOEaGf7"
    "rKlXgMKnb0hDMc+uG9xMeGPu03j0ykg1wLRIRibHCDyMvHDnktBgSl/3hYJG0wH1MMuGPwACylwbes7eNxIXyBsf2zosduvb"
    "1SjND8jUGDyoCjQ4dINpbhTiM7CheOytehsjTXnVhBvgMgv9BMVSi2F8mqXEVaImcN03J5qUZGFskOMl/pBd+3fSlXO2+YPa"
    "9yknR81eeNvhRcPKhh7vBO0+Jf/quXXTomu3WYzlA6wBlYP4HAAEZuJeq9T+wEtquHrOUQQvwhpyMUWzw8ECepJHv2OoVLTn"
    "ASzWx/NeXfOb74puZVQ+9008AIlmnsvSu6KRz4qyO6hKnXE75e6O9wgIE5/D/f8wijqJApY6OGRKtUlDFXGuHyxCJZJIL+Ua"
    "aMc9f8Ul4q1k83NCSvKq8dS1BQ3SKNSKgAgHpEK4vaebFLQwAWGq86x7OAcA28W4o5R3BnZ75qTXb44EOv92yYniIcBHIaxn"
    "F2/KrFOG/wWiL3MqODzEhXtLtGpun64YrCpKkzUJ9oainvd8rd5EVTgJjbjRFENZeCA91+ndeXe5Ck5tW20QOj3TNTDZxog3"
    "rHUtNwR7jsDIE8FwjqW2AD3HqKGRxhKvu0wjXH2AroH2GpLcjSk/8XT6dBFVRvTPr9X+MvAqFY8qiG4zHq3RsO+/Bpu8mNQl"
    "fcoASE4nAdum+eZyzhpJFHV4S5XNHsnMcbFBpct/x/VDvjJ108TUzswlprR+1xjkrvvA9HpV1XIWLDvX3k+qKhdgxHhVjHEy"
    "Oi9PDct33ohZwgMySTIMAMzN6Sv394CNsCP6+6LcXDaMhs2xrq087QZbseWyhd2x6UEUcFvrkHpGk1d1aWr3AC+cFX/0UWfB"
    "bHRfr1QROm4VJj+YicAlq5/zUM+8+KSiyGZdcET+bR/3mwEKCIX7s9yWa8CrLWNMi12tgsEOWTQ4s9/aLpkO22UzuS320WDz"
    "9bYxkerWXpv6qEAEydEv1H2gyP7EVc+8IZD/Pq4k1DBpi715z86V/514Ew3yLj4OPzccm7AtNkfLE9ZcxtPJRUzDYDV6Nqx6"
    "qUBSYvRnr11bpLDJhrjXBoJZo9z9lWwtWp356ibqxa86TSOxRHjQB9m076fJiDSZCCLEJdsAAqOm/2nxUAAAADrM9NZP7C7/"
    "AAGyDdZSAACJvsAAscRn+wIAAAAABFla"
)


def codes(words, num_bits):
    """Returns codes of 24 bits, repeated up to a number of bits."""
    three = np.array(words, "<u4").reshape(-1, 1).view(np.uint8)[:, :3]
    return np.tile(three, (1, num_bits // 24))


def build(num_bits):
    """Returns the index whose files are FORMAT_2, or the same with longer codes."""
    item = np.arange(20)
    words = np.stack([item * 7919, item * 10472927], 1) % 2**24
    index = BucketIndex.build(codes(words, num_bits), np.repeat(item, 2), num_bits)
    index.add(codes([513, 1027], num_bits), np.array([70, 71]))
    index.remove(np.array([3, 5]))
    return index


def answers(index):
    queries = codes(np.arange(16) * 1048573 % 2**24, index.num_bits)
    found = (*index.search(queries, 30), *index.within(queries, 9))
    return [array.tolist() for array in found]


def written(directory):
    """Returns the content of each array file by the name of its array."""
    return {path.name[:-21]: path.read_bytes() for path in directory.glob("*.npy")}


def test_an_index_of_format_2_opens_and_is_written_as_before(tmp_path):
    files = json.loads(lzma.decompress(base64.b64decode(FORMAT_2)))
    for name, content in files.items():
        (tmp_path / name).write_bytes(bytes.fromhex(content))
    old = BucketIndex.open(tmp_path)
    assert answers(old) == answers(build(24))
    build(24).save(tmp_path / "new")
    assert written(tmp_path / "new") == written(tmp_path)
    old.add(codes([9], 24), np.array([90]))
    old.save(tmp_path)
    assert answers(BucketIndex.open(tmp_path)) == answers(old)


@pytest.mark.parametrize(("num_bits", "expected"), [(24, "mch-index/2"), (72, "mch-index/3")])
def test_the_format_follows_from_the_length(num_bits, expected, tmp_path):
    index = build(num_bits)
    index.save(tmp_path)
    path = tmp_path / "meta.json"
    meta = json.loads(path.read_text())
    assert meta["format"] == expected
    assert answers(BucketIndex.open(tmp_path)) == answers(index)
    other = {"mch-index/2": "mch-index/3", "mch-index/3": "mch-index/2"}[expected]
    path.write_text(json.dumps(meta | {"format": other}))
    with pytest.raises(ValueError, match="is damaged: its checksum differs"):
        BucketIndex.open(tmp_path)


def test_long_codes_in_maps_notice_a_change(tmp_path):
    rng = np.random.default_rng(0)
    many, item = rng.integers(0, 256, (9000, 32), np.uint8), np.arange(9000)
    index = BucketIndex.build(many, item, 256)
    index.save(tmp_path)
    opened = BucketIndex.open(tmp_path)
    for one, two in zip(opened.search(many[:20], 3), index.search(many[:20], 3), strict=True):
        np.testing.assert_array_equal(one, two)
    again = BucketIndex.open(tmp_path, like=opened)  # its arrays are those that are mapped already
    assert again._segments.base.keys is opened._segments.base.keys
    (path,) = tmp_path.glob("base-keys-*.npy")
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    with pytest.raises(ValueError, match="was cut or changed after the index was opened"):
        opened.search(many[:1], 1)
    with pytest.raises(ValueError, match="is damaged: its checksum differs"):
        BucketIndex.open(tmp_path)
