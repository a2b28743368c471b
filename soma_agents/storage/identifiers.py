"""Time and names: the system's clock and UUIDs that sort by time."""

import secrets
import threading
import time
from datetime import UTC, datetime
from random import getrandbits

_RANDOM_BITS = 74
# Leave the top bit of the random part free, so that counting up has room within a millisecond.
_SEED_BITS = _RANDOM_BITS - 1


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> datetime:
        """Wall-clock time, aware, UTC."""
        return datetime.now(UTC)  # noqa: TID251 - this is the Clock


class Uuid7:
    """UUIDv7 as in RFC 9562, section 5.7, increasing within a process (section 6.2, method 2).

    48 bits of Unix milliseconds, then 74 random bits that count up by a random step within the
    same millisecond and whenever the clock goes back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millisecond = 0
        self._random = 0

    def new(self) -> str:
        """A fresh identifier, larger than every one before."""
        with self._lock:
            now = time.time_ns() // 1_000_000
            if now > self._millisecond:
                self._millisecond, self._random = now, secrets.randbits(_SEED_BITS)
            else:
                self._random += 1 + getrandbits(32)  # secret is where the counting began
                if self._random >> _RANDOM_BITS:
                    self._millisecond, self._random = (
                        self._millisecond + 1,
                        secrets.randbits(_SEED_BITS),
                    )
            return _uuid(self._millisecond, self._random)


def _uuid(millisecond: int, random: int) -> str:
    version, variant = 0b0111, 0b10
    high = random >> 62
    low = random & ((1 << 62) - 1)
    number = millisecond << 80 | version << 76 | high << 64 | variant << 62 | low
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
