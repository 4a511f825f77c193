"""Compiled programs that the next process loads: compiling takes most of a short run's time."""

import os
from pathlib import Path

LEAST_SECONDS = 0.1  # what compiles faster is not worth a file


def enable() -> None:
    """Keeps compiled programs in the user's cache directory, unless JAX was told another one.

    The directory is the user's own: what lies there is run.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "mch_jax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
