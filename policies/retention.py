"""Which part of the event log moves into the archive."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retention:
    """The content of the newest `keep` events stays in the log, all of it with 0.

    What is older moves in segments of `segment` events.
    """

    keep: int = 0
    segment: int = 2000


@dataclass(frozen=True, slots=True)
class Segment:
    """The content of the events `first` to `last` is to move."""

    first: int
    last: int


def segment_due(*, end: int, archived: int, rules: Retention) -> Segment | None:
    """The next segment to move, None while too few events are old.

    Args:
        end: offset of the newest event.
        archived: offset up to which the content has moved already.
        rules: how much stays.
    """
    last = archived + rules.segment
    if not rules.keep or end - last < rules.keep:
        return None
    return Segment(archived + 1, last)
