"""Operations on codes as kernels. A code is one 64-bit word."""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from mch_jax.kernels.jit import intrinsic, leaf


@intrinsic
def popcount(typingctx, word):
    """Returns the number of set bits of a uint64, as one instruction that LLVM can vectorise."""
    return word(word), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def _count_trailing_zeros(typingctx, word):
    """Returns the number of zero bits below the lowest set bit of a uint64; 64 if there is none."""
    return word(word), lambda context, builder, signature, args: builder.cttz(
        args[0], ir.IntType(1)(0)
    )


@intrinsic
def prefetch(typingctx, array, position):
    """Asks the processor to load an array element into its cache, without waiting for it."""

    def generate(context, builder, signature, args):
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        fetch = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, fetch, "llvm.prefetch.p0")
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        entry = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(fetch, [entry, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(array, types.int64), generate


@leaf
def lowest_bit(word):
    """Returns the position of the lowest set bit."""
    return np.int64(_count_trailing_zeros(word))


@leaf
def hamming(a, b):
    """Returns the Hamming distance between two codes."""
    return np.int64(popcount(a ^ b))


@leaf
def mix(code):
    """Returns a hash of a code. Different codes have different hashes."""
    code = (code ^ (code >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (code ^ (code >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


@leaf
def mask_rank(mask, binomials):
    """Returns how many smaller masks have as many bits set (combinatorial number system)."""
    total, ones = np.uint64(0), 0
    while mask:
        low = popcount((mask & (~mask + np.uint64(1))) - np.uint64(1))
        ones += 1
        total += binomials[np.int64(low), ones]
        mask &= mask - np.uint64(1)
    return total


@intrinsic
def _mask_within_64(typingctx, codes, start, query, reach):
    """Returns a bit mask of the 64 codes from `start` on that lie within reach of the query.

    It is written as operations on vectors, which LLVM translates into the instructions that the
    processor has. LLVM does not derive a bit mask from a loop of comparisons.
    """

    def generate(context, builder, signature, args):
        word, number = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(word, 64)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = builder.gep(array.data, [args[1]])
        block = builder.load(builder.bitcast(address, vector.as_pointer()), align=8)
        zeros = ir.Constant(ir.VectorType(number, 64), [0] * 64)

        def splat(value):
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, number(0))
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        popcounts = ir.FunctionType(vector, [vector])
        popcounts = cgutils.get_or_insert_function(builder.module, popcounts, "llvm.ctpop.v64i64")
        distance = builder.call(popcounts, [builder.xor(block, splat(args[2]))])
        return builder.bitcast(builder.icmp_signed("<=", distance, splat(args[3])), word)

    return types.uint64(codes, types.int64, types.uint64, types.int64), generate


@leaf
def mask_within(codes, start, stop, query, reach):
    """Returns a bit mask of the codes from `start` on, at most 64, that lie within reach."""
    if start + 64 <= codes.size:
        mask = _mask_within_64(codes, start, query, reach)
        return (
            mask
            if stop - start >= 64
            else mask & ((np.uint64(1) << np.uint64(stop - start)) - np.uint64(1))
        )
    mask = np.uint64(0)
    for row in range(start, min(stop, start + 64)):
        mask |= np.uint64(hamming(codes[row], query) <= reach) << np.uint64(row - start)
    return mask
