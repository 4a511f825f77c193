import importlib

import pytest


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("mch_jax.codes_file", "CodeFile"),
        ("mch_jax.codes_file", "load"),
        ("mch_jax.codes_file", "save"),
        ("mch_jax.features_file", "make"),
        ("mch_jax.features_file", "load"),
        ("mch_jax.objective", "Objective"),
        ("mch_jax.provenance", "provenance"),
        ("mch_jax.provenance", "config_hash"),
        ("mch_jax.provenance", "split_hash"),
    ],
)
def test_public_modules_keep_their_former_names(former, name):
    found = getattr(importlib.import_module(former), name)
    assert found is getattr(importlib.import_module(found.__module__), name)
    assert found.__module__ != former
