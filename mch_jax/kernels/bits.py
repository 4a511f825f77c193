"""Operations on codes as kernels.

A code of up to 64 bits is one word, and codes are uint64 [d]. A longer code is w words, and codes
lie in blocks of BLOCK_ROWS: uint64 [blocks, w, BLOCK_ROWS], so that a block is read with one vector
per word. A few longer codes, such as pivots, are uint64 [p, w]. Numba compiles only the branch that
belongs to the number of dimensions.
"""

from math import comb

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from mch_jax.kernels.jit import intrinsic, leaf

BLOCK_ROWS = 8  # a block has one cache line per word

# C(n, i), which is below 2^64 for n up to 64. Kernels that use it contain it.
BINOMIALS = np.array([[comb(n, i) for i in range(65)] for n in range(65)], np.uint64)


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
def mask_rank(mask):
    """Returns how many smaller masks have as many bits set (combinatorial number system)."""
    total, ones = np.uint64(0), 0
    while mask:
        low = popcount((mask & (~mask + np.uint64(1))) - np.uint64(1))
        ones += 1
        total += BINOMIALS[np.int64(low), ones]
        mask &= mask - np.uint64(1)
    return total


@leaf
def num_visited(mask, distance, num_bits):
    """Returns the number of buckets that Algorithm 1 visits up to that of a flip mask."""
    visited = mask_rank(mask) + np.uint64(1)
    for nearer in range(distance):
        visited += BINOMIALS[num_bits, nearer]
    return visited


def _distances(context, builder, types_of, args, num_blocks):
    """Returns code for the distances of a query to adjacent blocks of BLOCK_ROWS codes.

    It is written as operations on vectors, which LLVM translates into the instructions that the
    processor has. LLVM does not derive a bit mask from a loop of comparisons.

    Args:
      context: Context of the intrinsic.
      builder: Its builder.
      types_of: Types of codes, first row and query.
      args: Their values. The first row begins a block if the codes lie in blocks.
      num_blocks: Number of blocks.

    Returns:
      The distances of each block, as a vector.
    """
    word = ir.IntType(64)
    vector = ir.VectorType(word, BLOCK_ROWS)
    codes = context.make_array(types_of[0])(context, builder, args[0])
    popcounts = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{BLOCK_ROWS}i64"
    )

    def differing_bits(position, query_word):
        address = builder.bitcast(builder.gep(codes.data, [position]), vector.as_pointer())
        return builder.call(popcounts, [builder.xor(builder.load(address, align=8), query_word)])

    if types_of[0].ndim == 1:
        query_word = _splat(builder, args[2])
        rows = (builder.add(args[1], word(i * BLOCK_ROWS)) for i in range(num_blocks))
        return [differing_bits(row, query_word) for row in rows]
    query = context.make_array(types_of[2])(context, builder, args[2])
    num_words = cgutils.unpack_tuple(builder, codes.shape)[1]
    totals = [cgutils.alloca_once(builder, vector) for _ in range(num_blocks)]
    for total in totals:
        builder.store(ir.Constant(vector, [0] * BLOCK_ROWS), total)
    first, block_words = builder.mul(args[1], num_words), builder.mul(num_words, word(BLOCK_ROWS))
    with cgutils.for_range(builder, num_words) as loop:
        position = builder.add(first, builder.mul(loop.index, word(BLOCK_ROWS)))
        query_word = _splat(builder, builder.load(builder.gep(query.data, [loop.index])))
        for total in totals:
            ones = differing_bits(position, query_word)
            builder.store(builder.add(builder.load(total), ones), total)
            position = builder.add(position, block_words)
    return [builder.load(total) for total in totals]


def _splat(builder, value):
    """Returns code for a vector that repeats a value for every row of a block."""
    number = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(value.type, BLOCK_ROWS), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(number, BLOCK_ROWS), [0] * BLOCK_ROWS)
    one = builder.insert_element(undefined, value, number(0))
    return builder.shuffle_vector(one, undefined, zeros)


def _mask_of(num_blocks):
    """Returns an intrinsic for a bit mask of the codes of blocks that lie within reach."""

    def mask_of(typingctx, codes, start, query, reach):
        def generate(context, builder, signature, args):
            word, mask = ir.IntType(64), ir.IntType(64)(0)
            found = _distances(context, builder, signature.args, args, num_blocks)
            for i, distances in enumerate(found):
                within = builder.icmp_signed("<=", distances, _splat(builder, args[3]))
                part = builder.zext(builder.bitcast(within, ir.IntType(BLOCK_ROWS)), word)
                mask = builder.or_(mask, builder.shl(part, word(i * BLOCK_ROWS)))
            return mask

        return types.uint64(codes, types.int64, query, types.int64), generate

    return intrinsic(mask_of)


_mask_of_8, _mask_of_64 = _mask_of(1), _mask_of(8)


@intrinsic
def _none_of_64(typingctx, codes, start, query, reach):
    """Returns whether none of the 64 codes from `start` on lies within reach of the query.

    This takes fewer instructions than a bit mask.
    """

    def generate(context, builder, signature, args):
        is_far = None
        for distances in _distances(context, builder, signature.args, args, 8):
            beyond = builder.icmp_signed(">", distances, _splat(builder, args[3]))
            is_far = beyond if is_far is None else builder.and_(is_far, beyond)
        mask = builder.bitcast(is_far, ir.IntType(BLOCK_ROWS))
        return builder.icmp_unsigned("==", mask, mask.type(2**BLOCK_ROWS - 1))

    return types.boolean(codes, types.int64, query, types.int64), generate


@intrinsic
def fill_distances(typingctx, codes, block, query, distances):
    """Writes the distances of a query to the codes of one block to `distances`, from 8 * block."""

    def generate(context, builder, signature, args):
        start = builder.mul(args[1], ir.IntType(64)(BLOCK_ROWS))
        target = context.make_array(signature.args[3])(context, builder, args[3]).data
        (found,) = _distances(context, builder, signature.args, [args[0], start, args[2]], 1)
        target = builder.bitcast(builder.gep(target, [start]), found.type.as_pointer())
        builder.store(found, target, align=8)
        return context.get_dummy_value()

    return types.none(codes, types.int64, query, distances), generate


@leaf
def mask_within(codes, start, stop, query, reach):
    """Returns a bit mask of the codes from `start` on, at most 64, that lie within reach.

    Of codes in blocks, `start` begins a block.
    """
    if stop - start >= 64:
        return _mask_of_64(codes, start, query, reach)
    return _mask_of_last(codes, start, stop, query, reach)


@leaf
def _mask_of_last(codes, start, stop, query, reach):
    """Returns what `mask_within` returns, for fewer than 64 codes."""
    mask = np.uint64(0)
    if codes.ndim == 1:
        if start + 64 <= codes.size:
            mask = _mask_of_64(codes, start, query, reach)
        else:
            for row in range(start, stop):
                mask |= np.uint64(hamming(codes[row], query) <= reach) << np.uint64(row - start)
    else:
        for row in range(start, stop, 8):
            mask |= _mask_of_8(codes, row, query, reach) << np.uint64(row - start)
    return mask & ((np.uint64(1) << np.uint64(stop - start)) - np.uint64(1))


@leaf
def first_within(codes, start, stop, query, reach):
    """Returns the first row of the first 64 codes of which one lies within reach.

    Codes are looked at 64 at a time from `start` on, which begins a block. If only the last rows
    remain, fewer than 64, it is the first of these.
    """
    while start + 64 <= stop and _none_of_64(codes, start, query, reach):
        start += 64
    return start
