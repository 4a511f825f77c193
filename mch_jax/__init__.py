"""Multiple Code Hashing for image retrieval, in JAX."""

__version__ = "0.1.0"
