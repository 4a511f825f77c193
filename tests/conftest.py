"""Setup of all tests: 8 CPU devices, strict broadcasting, checks of shapes, and fixtures."""

import gc
import os
import pathlib

import jax
import jaxtyping
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the tests' time is compilation, so compiled programs are cached between test runs.
_CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
jax.config.update("jax_compilation_cache_dir", str(_CACHE / "mch_jax" / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Annotations of shapes and dtypes are checked in tests only. The hook must be installed before the
# first import. The index checks its arguments itself, and numba cannot cache wrapped kernels.
_SOURCES = pathlib.Path(__file__).parents[1].glob("mch_jax/*")
_UNCHECKED = ("index", "kernels")
jaxtyping.install_import_hook(
    [f"mch_jax.{path.stem}" for path in _SOURCES if not path.stem.startswith(_UNCHECKED)],
    "beartype.beartype",
)


_MAPS = pathlib.Path("/proc/self/maps")  # on Linux
_MOST_MAPS = 30_000  # Linux allows a process 65,530, and XLA crashes beyond


@pytest.fixture(scope="module", autouse=True)
def _few_compiled_programs():
    """Drops compiled programs between files of tests before they use up the memory maps."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> pathlib.Path:
    """The workdir of a finished tiny run. Tests that change its files copy it first."""
    from tiny_run import tiny

    from mch_jax import pipeline

    workdir = tmp_path_factory.mktemp("finished")
    pipeline.run_stages(tiny(), workdir)
    return workdir


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    import small_run as module  # must be imported after the hook is installed

    return module.make(tmp_path_factory.mktemp("small"))
