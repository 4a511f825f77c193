"""Operations on codes as kernels.

A code of up to 64 bits is one word, and codes are uint64 [d]. A longer code is w words, and codes
lie in blocks of BLOCK_ROWS: uint64 [blocks, w, BLOCK_ROWS], so that a block is read with one vector
per word. A few longer codes, such as pivots, are uint64 [p, w]. Numba compiles only the branch that
belongs to the number of dimensions.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from mch_jax.kernels.jit import intrinsic, leaf

BLOCK_ROWS = 8  # a block has one cache line per word


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
def distance_to(codes, row, query):
    """Returns the Hamming distance between a query and one of several codes."""
    if codes.ndim == 1:
        return np.int64(popcount(codes[row] ^ query))
    if codes.ndim == 2:
        total = np.uint64(0)
        for j in range(codes.shape[1]):
            total += popcount(codes[row, j] ^ query[j])
        return np.int64(total)
    total = np.uint64(0)
    for j in range(codes.shape[1]):
        total += popcount(codes[row >> 3, j, row & 7] ^ query[j])
    return np.int64(total)


@leaf
def mix(code):
    """Returns a hash of a code. Different codes have different hashes."""
    code = (code ^ (code >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (code ^ (code >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


@leaf
def hash_of(codes, code):
    """Returns a hash of a code that has the form of a row of `codes`."""
    if codes.ndim == 1:
        return mix(code)
    hashed = np.uint64(0)
    for j in range(code.size):
        hashed = mix(hashed ^ code[j]) + np.uint64(j)
    return hashed


@leaf
def hash_of_row(codes, row):
    """Returns what `hash_of` returns for one of several codes."""
    if codes.ndim == 1:
        return mix(codes[row])
    if codes.ndim == 2:
        return hash_of(codes, codes[row])
    hashed = np.uint64(0)
    for j in range(codes.shape[1]):
        hashed = mix(hashed ^ codes[row >> 3, j, row & 7]) + np.uint64(j)
    return hashed


@leaf
def is_code(codes, row, code):
    """Returns whether a code is that of a row."""
    if codes.ndim == 1:
        return codes[row] == code
    is_equal = True
    for j in range(codes.shape[1]):
        is_equal = is_equal and codes[row >> 3, j, row & 7] == code[j]
    return is_equal


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


def _distances_to_block(context, builder, types_of, args):
    """Returns code for the distances of a query to the codes of a block, as one vector.

    Args:
      context: Context of the intrinsic.
      builder: Its builder.
      types_of: Types of codes, block and query.
      args: Their values.
    """
    word = ir.IntType(64)
    vector = ir.VectorType(word, BLOCK_ROWS)
    codes = context.make_array(types_of[0])(context, builder, args[0])
    query = context.make_array(types_of[2])(context, builder, args[2])
    num_words = cgutils.unpack_tuple(builder, codes.shape)[1]
    popcounts = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{BLOCK_ROWS}i64"
    )
    total = cgutils.alloca_once(builder, vector)
    builder.store(ir.Constant(vector, [0] * BLOCK_ROWS), total)
    first = builder.mul(builder.mul(args[1], num_words), word(BLOCK_ROWS))
    with cgutils.for_range(builder, num_words) as loop:
        position = builder.add(first, builder.mul(loop.index, word(BLOCK_ROWS)))
        address = builder.bitcast(builder.gep(codes.data, [position]), vector.as_pointer())
        own = _splat(builder, builder.load(builder.gep(query.data, [loop.index])))
        differing = builder.xor(builder.load(address, align=8), own)
        ones = builder.call(popcounts, [differing])
        builder.store(builder.add(builder.load(total), ones), total)
    return builder.load(total)


def _splat(builder, value):
    """Returns code for a vector that repeats a value for every row of a block."""
    number = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(value.type, BLOCK_ROWS), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(number, BLOCK_ROWS), [0] * BLOCK_ROWS)
    one = builder.insert_element(undefined, value, number(0))
    return builder.shuffle_vector(one, undefined, zeros)


@intrinsic
def _mask_of_block(typingctx, codes, block, query, reach):
    """Returns a bit mask of the codes of one block that lie within reach of the query."""

    def generate(context, builder, signature, args):
        distances = _distances_to_block(context, builder, signature.args, args)
        within = builder.icmp_signed("<=", distances, _splat(builder, args[3]))
        mask = builder.bitcast(within, ir.IntType(BLOCK_ROWS))
        return builder.zext(mask, ir.IntType(64))

    return types.uint64(codes, types.int64, query, types.int64), generate


@intrinsic
def fill_distances(typingctx, codes, block, query, distances):
    """Writes the distances of a query to the codes of one block to `distances`, from 8 * block."""

    def generate(context, builder, signature, args):
        found = _distances_to_block(context, builder, signature.args, args)
        target = context.make_array(signature.args[3])(context, builder, args[3]).data
        target = builder.gep(target, [builder.mul(args[1], ir.IntType(64)(BLOCK_ROWS))])
        builder.store(found, builder.bitcast(target, found.type.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(codes, types.int64, query, distances), generate


@leaf
def mask_within(codes, start, stop, query, reach):
    """Returns a bit mask of the codes from `start` on, at most 64, that lie within reach.

    Of codes in blocks, `start` begins a block.
    """
    if codes.ndim == 3:
        mask, block = np.uint64(0), start >> 3
        num_rows = min(stop - start, 64)
        for i in range((num_rows + 7) >> 3):
            mask |= _mask_of_block(codes, block + i, query, reach) << np.uint64(8 * i)
        unused = np.uint64(64 - num_rows)
        return mask << unused >> unused
    return _mask_within_words(codes, start, stop, query, reach)


@leaf
def _mask_within_words(codes, start, stop, query, reach):
    """Returns what `mask_within` returns, for codes of one word."""
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
