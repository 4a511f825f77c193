"""Compiled kernels (numba) of the bucket index and of the histograms of the evaluation.

| module | holds |
| --- | --- |
| `jit` | the two decorators, and when a compiled kernel on disk is out of date |
| `bits` | popcount, distance, hash and rank of codes of one or several 64-bit words |
| `arrays` | sorting, selection, and buffers that grow |
| `segment` | the arrays of a segment, and reads of single buckets |
| `build` | making the arrays of a segment |
| `build_long` | the same for codes of several words, where they need another way |
| `scan` | finding the buckets within a distance of a query |
| `filter` | a bitmap that tells which codes are surely not in a segment |
| `rank` | ordering the items of the buckets found |
| `search` | the k nearest items |
| `asymmetric` | the k items of least asymmetric distance |
| `within` | every item within a radius |
| `masks` | the flip masks of least quantization distance |
| `probe` | the items of the buckets of least quantization distance |
| `probe_long` | the same for codes of several words, from a heap of flip masks |
| `visits` | the buckets that Algorithm 1 visits, one by one |
| `visit_counts` | how many buckets it visits, from known distances |
| `merge` | the answers of several indexes as one |
| `histogram` | items per distance and relevance |
| `checksum` | a checksum at the speed of memory |
| `threads` | runs a kernel over slices of the queries in several threads |

Only `mch_jax.index`, `mch_jax.histograms` and `mch_jax.metrics` call kernels. In kernels, integers
are int64 unless they are codes (uint64): NumPy's promotion rules would turn a mixture of the two
into floats. Constants are passed as `ZERO` and `NO_LIMIT`, because a literal argument compiles
another version of a function.
"""
