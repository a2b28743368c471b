"""Continuous batching: prompts are read in chunks between decoding steps, replies grow together.

Lives on the decoding thread and knows nothing of threads or asyncio.
"""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Items

from torch import Tensor

from soma_agents.language.cache import BatchCache, PromptCache, blocks
from soma_agents.language.decoder import Decoder
from soma_agents.language.drafts import FIRST_ROWS, Drafter, worthwhile
from soma_agents.language.mixed_lora import MixedLora
from soma_agents.language.model import LanguageModel
from soma_agents.language.prefixes import CHUNK, PIECE, PrefixCache, chunk_end
from soma_agents.language.requests import Finished, FinishReason, Piece
from soma_agents.language.sampling import token_logprob
from soma_agents.language.sequence import Sequence
from soma_agents.language.waiting import FairQueue

Deliver = Callable[[Sequence, Piece | Finished], None]


class Batch:
    """All requests of an engine, from waiting to the last token."""

    def __init__(
        self,
        model: LanguageModel,
        decoder: Decoder,
        *,
        slots: int,
        cache_tokens: int,
        deliver: Deliver,
        drafts: bool = True,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._dtype = model.transformer.embedding.weight.dtype
        self._slots = slots
        self._cache_tokens = cache_tokens
        self._deliver = deliver
        self._drafts = drafts and decoder.same_in_any_company
        self._eos = frozenset(model.tokenizer.eos_ids)
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.reading: FairQueue[Sequence] = FairQueue()
        self.decoding: list[Sequence] = []  # in the order of the cache's rows
        self._cache = BatchCache(model.config, self._dtype)
        self._lora: MixedLora | None = None
        piece = PIECE if decoder.read_alike >= CHUNK else CHUNK
        self._prefixes = PrefixCache(tokens=cache_tokens // 4, piece=piece)
        self.prompt_tokens = self.completion_tokens = self.steps = 0
        self.drafted_tokens = self.right_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.decoding or len(self.reading) or len(self.waiting))

    def read(self) -> None:
        """Admit, and read one chunk of one prompt; after its last chunk comes the first token."""
        self._drop_cancelled()
        self._admit()
        self._read_chunk()

    def decode(self) -> None:
        """Add a token to every running reply."""
        if self.decoding:
            self._decode()

    def abort(self, reason: FinishReason) -> None:
        """End every request now."""
        for sequence in [*self.waiting.clear(), *self.reading.clear(), *self.decoding]:
            self._finish(sequence, reason)
        self.decoding = []
        self._cache = BatchCache(self._model.config, self._dtype)

    def _drop_cancelled(self) -> None:
        for queue in (self.waiting, self.reading):
            for gone in [sequence for sequence in queue if sequence.cancelled]:
                queue.remove(gone)
                self._finish(gone, "cancelled")
        for row in reversed(range(len(self.decoding))):
            if self.decoding[row].cancelled:
                self._leave(row, "cancelled")

    def _admit(self) -> None:
        while (candidate := self.waiting.peek()) is not None and self._fits(candidate):
            self.waiting.pop()
            candidate.cache = PromptCache(
                self._model.config, len(candidate.request.prompt), self._dtype
            )
            self.reading.put(candidate.request.tenant, candidate)

    def _fits(self, candidate: Sequence) -> bool:
        """Whether all, padded to the longest, stay within the cache's budget."""
        running = [*self.decoding, *self.reading]
        if not running:
            return True
        count = len(running) + 1
        longest = max(blocks(sequence.size) for sequence in (*running, candidate))
        return count <= self._slots and count * longest <= self._cache_tokens

    def _read_chunk(self) -> None:
        sequence = self.reading.peek()
        cache = None if sequence is None else sequence.cache
        if sequence is None or cache is None:
            return
        request, prompt = sequence.request, sequence.request.prompt
        self._prefixes.restore(request, sequence.lora, cache)  # what was read meanwhile, too
        start = cache.length
        chunk = prompt[start : chunk_end(request, start)]
        hidden = self._decoder.read(chunk, cache, sequence.lora)
        self.prompt_tokens += len(chunk)
        self.reading.pop()
        self._prefixes.keep(request, sequence.lora, start, cache)
        if cache.length < len(prompt):
            self.reading.put(request.tenant, sequence)
            return
        logits = self._decoder.head(hidden)
        sequence.first_token = time.perf_counter() - sequence.submitted
        sequence.cache = None
        sequence.drafter = Drafter(prompt) if self._drafts else None
        reason = self._take(sequence, logits[0], _likeliest(logits)[0])
        if reason is not None:
            self._finish(sequence, reason)
            return
        self._cache.join(cache)
        self.decoding.append(sequence)
        self._regroup()

    def _decode(self) -> None:
        drafts = self._drafted()
        runs = [[s.token, *draft] for s, draft in zip(self.decoding, drafts, strict=True)]
        logits = self._decoder.step(runs, self._cache, self._adapters(runs))
        self.steps += 1
        likeliest, ends, start = _likeliest(logits), list[FinishReason | None](), 0
        for row, draft in enumerate(drafts):
            end = start + 1 + len(draft)
            ends.append(self._follow(row, draft, logits[start:end], likeliest[start:end]))
            start = end
        for row in reversed(range(len(ends))):
            if (reason := ends[row]) is not None:
                self._leave(row, reason)

    def _drafted(self) -> list[list[int]]:
        """What is checked beside the newest token of each running reply, as far as it pays."""
        if not self._drafts or len(self.decoding) >= FIRST_ROWS:
            return [[] for _ in self.decoding]
        offers = [(s.drafter, s.limit - s.generated - 1) for s in self.decoding if s.drafter]
        return worthwhile(offers, self._decoder.fixed_rows)

    def _adapters(self, runs: Items[list[int]]) -> MixedLora | None:
        if self._lora is None or all(len(run) == 1 for run in runs):
            return self._lora
        pairs = zip(self.decoding, runs, strict=True)
        return MixedLora([sequence.lora for sequence, run in pairs for _ in run])

    def _follow(
        self, row: int, draft: Items[int], logits: Tensor, likeliest: Items[int]
    ) -> FinishReason | None:
        """Take tokens as long as the draft is what would have been chosen without it, and one more."""
        sequence, kept = self.decoding[row], 0
        self.drafted_tokens += len(draft)
        for expected in (*draft, None):
            reason = self._take(sequence, logits[kept], likeliest[kept])
            if reason is not None:
                return reason
            kept += 1
            if sequence.token != expected:
                break
            self.right_tokens += 1
        self._cache.keep(row, kept)
        return None

    def _take(self, sequence: Sequence, logits: Tensor, likeliest: int) -> FinishReason | None:
        """Choose the next token and say what is new; the reason if the reply ends with it."""
        if not math.isfinite(logits.numpy()[likeliest]):
            return "error"
        sampler = sequence.sampler
        token = likeliest if sampler.greedy else sampler.choose(logits)
        sequence.generated += 1
        self.completion_tokens += 1
        if token in self._eos:
            return "stop"
        sequence.token = token
        if sequence.drafter:
            sequence.drafter.push(token)
        wanted = sampler.sampling.logprobs
        logprob = None if wanted is None else token_logprob(logits, token, wanted)
        sequence.reply.push(token, logprob)
        if sequence.reply.stopped:
            return "stop"
        if sequence.generated >= sequence.limit:
            return "length"
        if (piece := sequence.reply.piece()) is not None:
            self._deliver(sequence, piece)
        return None

    def _leave(self, row: int, reason: FinishReason) -> None:
        sequence = self.decoding[row]
        last = self.decoding.pop()
        if last is not sequence:
            self.decoding[row] = last  # as the cache moves its last row into the gap
        self._cache.leave(row)
        self._regroup()
        self._finish(sequence, reason)

    def _regroup(self) -> None:
        adapters = [sequence.lora for sequence in self.decoding]
        self._lora = MixedLora(adapters) if any(adapters) else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if (piece := sequence.reply.last()) is not None:
            self._deliver(sequence, piece)
        self._deliver(sequence, sequence.finished(reason))


def _likeliest(logits: Tensor) -> list[int]:
    """The token of the largest logit of each row (B, V), or of one that is NaN."""
    return logits.numpy().argmax(axis=-1).tolist()  # some ten times as fast as torch's
