"""The text of one reply as it grows: whole characters, and never a part of a stop string."""

from collections.abc import Sequence

from soma_agents.language.requests import Piece
from soma_agents.language.sampling import TokenLogprob
from soma_agents.language.tokenizer import ChatTokenizer


class Reply:
    """Collects tokens and hands out pieces.

    `stopped` becomes true once a stop string is complete; it and all behind it is dropped.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str]) -> None:
        self._decoder = tokenizer.stream_decoder()
        self._stop = tuple(stop)
        self._held = ""
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self.stopped = False

    def push(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take the next token."""
        self._tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        self._take(self._decoder.push(token))

    def piece(self) -> Piece | None:
        """What can be said for certain since the last piece, None if no text can."""
        undecided = 0 if self.stopped else self._undecided()
        text = self._held[: len(self._held) - undecided]
        return self._cut(text) if text else None

    def last(self) -> Piece | None:
        """Everything that is left, None if nothing is."""
        if not self.stopped:
            self._take(self._decoder.flush())
        return self._cut(self._held) if self._held or self._tokens else None

    def _take(self, text: str) -> None:
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.stopped = True

    def _undecided(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:size])
            ),
            default=0,
        )

    def _cut(self, text: str) -> Piece:
        piece = Piece(text, tuple(self._tokens), tuple(self._logprobs))
        self._held = self._held[len(text) :]
        self._tokens, self._logprobs = [], []
        return piece
