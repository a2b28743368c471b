"""Adaptive coding: contexts are counted while coding, and what they predict is mixed.

A token is written as binary decisions, its highest bit first. For each, the tokens before it (none,
one, two) and the bits so far name a counter of zeros and ones; the counters' log odds are added
with weights that learn by gradient descent (Mahoney 2005, "Adaptive weighing of context models").
The stream is cut into lanes that advance together and share counters and weights, so that each
decision is one numpy call for all lanes. Counts, sums, products, roots and tables rounded far above
the last place: the decoder's numbers are the encoder's, on every machine.
"""

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError
from soma_agents.language.symbols.compression import rans
from soma_agents.language.symbols.compression.parts import Reader, Stream, Writer

ORDERS = 3
"""Contexts: no token, one, two."""
LANE_TOKENS = 1024
MOST_LANES = 4096
SMALLEST_TABLE, LARGEST_TABLE = 12, 24
"""Counters, as powers of two."""
MOST_COUNT = 1000
"""A counter that reaches it is halved."""
PRIOR = 0.3
"""Seen before anything is seen, of zeros and of ones."""
FIRST_WEIGHT = 0.4
RATE = 0.01
SCALE = 16
LEAST = 24
"""No decision gets less than this of 2^SCALE."""
STEPS, REACH = 256, 11
"""Log odds are looked up in steps of 1/STEPS, up to ± REACH."""

# Halved after every step, a counter stays at most what one step can add.
LOGS = np.rint(np.log(np.arange(ORDERS * MOST_LANES + 1) + PRIOR) * 4096) / 4096
SQUASH = np.clip(
    np.rint(2**SCALE / (1 + np.exp(-np.arange(-REACH * STEPS, REACH * STEPS + 1) / STEPS))),
    LEAST,
    2**SCALE - LEAST,
).astype(np.int64)
TRUST = np.array([0, 1, 2, 2, *[3] * (2 * len(LOGS))])
"""How far a counter is trusted, by what it has seen."""
TRUSTS = 4
HASHES = np.array([0, 0x27D4EB2F, 0x165667B1], np.uint32)

Lane = npt.NDArray[np.uint32]
Bits = npt.NDArray[np.int64]


class Model:
    """The chance that the next bit of each lane is one; learns each bit once it is known."""

    def __init__(self, lanes: int, table_bits: int) -> None:
        self._counts = np.zeros(2 << table_bits, np.uint16)
        self._shift = np.uint32(32 - table_bits)
        self._weights = np.full((ORDERS, TRUSTS ** (ORDERS - 1)), FIRST_WEIGHT)
        self._contexts = np.zeros((ORDERS, lanes), np.uint32)

    def begin(self, last: Lane, before: Lane) -> None:
        """A new token comes in each lane, after these two."""
        self._contexts[1] = (last + np.uint32(1)) * HASHES[1] + np.uint32(1)
        self._contexts[2] = self._contexts[1] ^ (before + np.uint32(7)) * HASHES[2]

    def predict(self, node: Lane) -> Bits:
        """(W,) the chance of a one in 2^SCALE, after the token's bits so far (a one before them)."""
        self._slots = self._slots_of(node)
        zeros, ones = self._counts[self._slots], self._counts[self._slots + 1]
        self._odds = LOGS[ones] - LOGS[zeros]  # (ORDERS, W)
        trust = TRUST[zeros[1:].astype(np.int64) + ones[1:]]
        self._set = trust[0] * TRUSTS + trust[1]
        weights = self._weights[:, self._set]
        mixed = sum(weights[order] * self._odds[order] for order in range(ORDERS))
        place = np.clip(mixed * STEPS, -REACH * STEPS, REACH * STEPS).astype(np.int64)
        self._chance = SQUASH[place + REACH * STEPS]
        return self._chance

    def learn(self, bits: Bits) -> None:
        """The bits that came."""
        error = bits - self._chance / (1 << SCALE)
        sets = self._weights.shape[1]
        often = np.sqrt(np.maximum(np.bincount(self._set, minlength=sets), 1))
        for order in range(ORDERS):
            slope = np.bincount(self._set, weights=error * self._odds[order], minlength=sets)
            self._weights[order] += RATE * slope / often
        seen = (self._slots + bits).reshape(-1)
        np.add.at(self._counts, seen, np.uint16(1))
        full = self._slots.reshape(-1)[self._counts[seen] > MOST_COUNT]
        if len(full):
            full = np.unique(full)
            self._counts[full] >>= 1
            self._counts[full + 1] >>= 1

    def _slots_of(self, node: Lane) -> Bits:
        """(ORDERS, W) even places of counters in the table."""
        mixed = self._contexts + node * np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x9E3779B1)
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(0xC2B2AE35)
        return (mixed >> self._shift).astype(np.int64) << 1


def pack(stream: Stream, out: Writer) -> None:
    """Write a stream."""
    width = int(stream.max(initial=0)).bit_length()
    out.number(width)
    if not width:
        return
    lanes, steps = _shape(len(stream))
    text = np.full(lanes * steps, stream[-1], np.uint32)
    text[: len(stream)] = stream
    text = np.ascontiguousarray(text.reshape(lanes, steps).T)  # (steps, W)
    model = Model(lanes, _table_bits(len(stream), width))
    chances = np.empty((steps, width, lanes), np.uint16)
    for step, tokens in enumerate(text):
        model.begin(_row(text, step - 1), _row(text, step - 2))
        node = np.ones(lanes, np.uint32)
        for place in range(width):
            chances[step, place] = model.predict(node)
            bit = _bit(tokens, width, place)
            model.learn(bit.astype(np.int64))
            node = node << np.uint32(1) | bit
    groups = (
        _shares(chances[step, place].astype(np.int64), _bit(text[step], width, place) > 0)
        for step in reversed(range(steps))
        for place in reversed(range(width))
    )
    rans.encode(groups, SCALE, lanes, out)


def unpack(data: Reader, count: int) -> Stream:
    """Read a stream of `count` values."""
    width = data.number()
    if width > 32:  # noqa: PLR2004 - bits of a token id
        raise CorruptError(f"compressed tokens are damaged: a token has {width!r} bits")
    if not width or not count:
        return np.zeros(count, np.uint32)
    lanes, steps = _shape(count)
    decoder = rans.Decoder(data, SCALE, lanes)
    model = Model(lanes, _table_bits(count, width))
    text, mask = np.zeros((steps, lanes), np.uint32), np.uint32((1 << width) - 1)
    for step, tokens in enumerate(text):
        model.begin(_row(text, step - 1), _row(text, step - 2))
        node = np.ones(lanes, np.uint32)
        for _ in range(width):
            slots, chance = decoder.slots(lanes), model.predict(node)
            bit = slots.astype(np.int64) >= (1 << SCALE) - chance
            decoder.advance(slots, *_shares(chance, bit))
            model.learn(bit.astype(np.int64))
            node = node << np.uint32(1) | bit
        tokens[:] = node & mask  # a token of 32 bits has pushed the one before it out
    decoder.end()
    return np.ascontiguousarray(text.T).reshape(-1)[:count]


def _shape(count: int) -> tuple[int, int]:
    """Lanes, and tokens in each."""
    lanes = max(1, min(MOST_LANES, count // LANE_TOKENS))
    return lanes, -(-count // lanes)


def _table_bits(count: int, width: int) -> int:
    needed = (count * width * ORDERS).bit_length()
    return max(SMALLEST_TABLE, min(LARGEST_TABLE, needed))


def _row(text: Stream, step: int) -> Lane:
    return text[step] if step >= 0 else np.zeros_like(text[0])


def _bit(tokens: Lane, width: int, place: int) -> Lane:
    """The bit of each token at a place, the highest at 0."""
    return tokens >> np.uint32(width - 1 - place) & np.uint32(1)


def _shares(chances: Bits, bits: npt.NDArray[np.bool_]) -> tuple[rans.Counts, rans.Counts]:
    """Where in 2^SCALE each decision's share begins, zeros first, and how large it is."""
    zeros = (1 << SCALE) - chances
    starts = np.where(bits, zeros, 0).astype(np.uint64)
    return starts, np.where(bits, chances, zeros).astype(np.uint64)
