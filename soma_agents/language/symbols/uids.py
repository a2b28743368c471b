"""Unique ids: xorshift64*, many lanes at a time.

Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016), table 1:
shifts 12, 25, 27 and the multiplier below. The state takes every value but 0 once in a period of
2^64 - 1 and the multiplier is odd, so the ids of one seed never repeat and none is 0.

One step is linear over GF(2), a 64 x 64 matrix M of bits. M^k starts a lane k steps further on, so
that many lanes advance beside each other, each inside its own stretch of the result: in a compiled
loop where there is one, else in numpy, all lanes by one step at once.
"""

from functools import lru_cache

import numpy as np

from arbiters.errors import InvalidError
from soma_agents.language.symbols.compiled import TOGETHER, TOGETHER_BITS, UInt64s, compiled

MULTIPLIER = np.array(2685821657736338717, np.uint64)
SHIFTS = np.array(12, np.uint64), np.array(25, np.uint64), np.array(27, np.uint64)
"""Arrays without dimensions: numpy converts a scalar at every call."""
MASK = (1 << 64) - 1
PERIOD = MASK
LANE_BITS = 13
LANES = 1 << LANE_BITS
"""Lanes advanced together."""
STEP_BITS, COMPILED_STEP_BITS = 5, 10
"""A lane makes at most 2 ** STEP_BITS ids in a stretch."""
PADDING = 8


def uids(seed: int, count: int, *, skip: int = 0) -> UInt64s:
    """The ids `skip` to `skip + count` of the generator whose first state is `seed`.

    Returns:
        (count,) uint64, all different, none 0.

    Raises:
        InvalidError: the seed is 0 or not of 64 bits, or a count is negative.
    """
    if not 0 < seed <= MASK:
        raise InvalidError(f"seed {seed!r} is not from 1 to 2^64 - 1: xorshift64* never leaves 0")
    if count < 0 or skip < 0:
        raise InvalidError(f"cannot make {count!r} ids after skipping {skip!r}: give 0 or more")
    fill, most = _fill, STEP_BITS
    if (loop := compiled()) is not None:
        fill, most = loop, COMPILED_STEP_BITS
    bits = max(
        TOGETHER_BITS, min(most, (count.bit_length() - 5) // 2)
    )  # starting a lane costs, too
    steps = 1 << bits
    made = np.empty((-(-count // (steps * TOGETHER)) * TOGETHER, steps), np.uint64)
    starts = _lane_starts(_jump(seed, skip % PERIOD), min(len(made), LANES), bits)
    for first in range(0, len(made), LANES):
        part = made[first : first + LANES]
        fill(part, starts[: len(part)].copy())
        if first + LANES < len(made):
            starts = apply(power(bits + LANE_BITS), starts)
    return made.reshape(-1)[:count]


def _fill(part: UInt64s, states: UInt64s) -> None:
    """Write the ids after each lane's state into its row of `part` (lanes, steps)."""
    lanes, steps = part.shape
    scratch = np.empty_like(states)
    # (steps, lanes): a row is written at once. Unpadded rows would share the cache's sets.
    made = np.empty((steps, lanes + PADDING), np.uint64)[:, :lanes]
    for row in made:
        np.right_shift(states, SHIFTS[0], scratch)
        np.bitwise_xor(states, scratch, states)
        np.left_shift(states, SHIFTS[1], scratch)
        np.bitwise_xor(states, scratch, states)
        np.right_shift(states, SHIFTS[2], scratch)
        np.bitwise_xor(states, scratch, states)
        np.multiply(states, MULTIPLIER, row)
    part[:] = made.T


def _lane_starts(state: int, lanes: int, bits: int) -> UInt64s:
    """State before each lane's first step: lane j starts j * 2**bits steps after `state`."""
    starts = np.array([state], np.uint64)
    while len(starts) < lanes:
        further = apply(power(bits), starts[: lanes - len(starts)])
        starts = np.concatenate([starts, further])
        bits += 1
    return starts


def _jump(state: int, steps: int) -> int:
    """State `steps` steps after `state`."""
    at = np.array([state], np.uint64)
    for bit in range(steps.bit_length()):
        if steps >> bit & 1:
            at = apply(power(bit), at)
    return int(at[0])


@lru_cache(maxsize=64)
def power(exponent: int) -> UInt64s:
    """M ** (2 ** exponent): (8, 256), what each byte of a state contributes to the new state."""
    if exponent == 0:
        basis = np.uint64(1) << np.arange(64, dtype=np.uint64)
        return _tables(_step(basis))
    half = power(exponent - 1)
    columns = half[:, 1 << np.arange(8)].reshape(64)
    return _tables(apply(half, columns))


def apply(matrix: UInt64s, states: UInt64s) -> UInt64s:
    """The product of a matrix, as `power` returns it, with each state."""
    parts = np.ascontiguousarray(states).astype("<u8").view(np.uint8).reshape(-1, 8)
    total = matrix[0].take(parts[:, 0])
    for place in range(1, 8):
        total ^= matrix[place].take(parts[:, place])
    return total


def _step(x: UInt64s) -> UInt64s:
    x = x ^ (x >> SHIFTS[0])
    x = x ^ (x << SHIFTS[1])
    return x ^ (x >> SHIFTS[2])


def _tables(columns: UInt64s) -> UInt64s:
    """Sums of every subset of the eight columns behind each byte of a state."""
    tables = np.zeros((8, 1), np.uint64)
    for bit in range(8):
        column = columns.reshape(8, 8)[:, bit : bit + 1]
        tables = np.concatenate([tables, tables ^ column], axis=1)
    return tables
