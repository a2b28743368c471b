"""Tokens a second: BPE beside tiktoken and tokenizers on one vocabulary, uids beside plain Python.

`python -m bench.tokenize`, alone on the machine; one core. The figure is our encoding over that of
the faster peer; it holds when encoding with identities, and uids, reach their targets as well.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import time
from collections.abc import Callable

import tiktoken
from tokenizers import Tokenizer

from bench.corpus import mixed
from soma_agents.language.symbols.bpe import Bpe
from soma_agents.language.symbols.records import contents_of, records
from soma_agents.language.symbols.uids import uids

VOCABULARY = 16_384
ROUNDS = 15
UIDS = 4_000_000
PLAIN_UIDS = 200_000
TARGET_ENCODE = 0.9
TARGET_IDENTITIES = 0.6
TARGET_UIDS = 50e6
TARGET_PLAIN = 100.0
SEED = 1234567


def plain_uids(seed: int, count: int) -> list[int]:
    """xorshift64* as it is published, in plain Python."""
    made, x = [], seed
    for _ in range(count):
        x ^= x >> 12
        x ^= x << 25 & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 27
        made.append(x * 2685821657736338717 & 0xFFFFFFFFFFFFFFFF)
    return made


def rates(works: dict[str, tuple[Callable[[], object], float]]) -> dict[str, float]:
    """Units a second of each work, by turns; each one's best, since noise only ever slows."""
    found = dict.fromkeys(works, 0.0)
    for _ in range(ROUNDS):
        for name, (work, units) in works.items():
            started = time.perf_counter()
            work()
            found[name] = max(found[name], units / (time.perf_counter() - started))
    return found


def works_of(bpe: Bpe, text: str) -> dict[str, tuple[Callable[[], object], float]]:
    """Name → what to do, and its units: megabytes of text, or uids."""
    fast, slow = peer_of(bpe), Tokenizer.from_str(bpe.source)
    assert bpe.encode(text).tolist() == fast.encode_ordinary(text)
    assert bpe.encode(text).tolist() == slow.encode(text, add_special_tokens=False).ids
    assert uids(SEED, PLAIN_UIDS).tolist() == plain_uids(SEED, PLAIN_UIDS)
    contents, size = contents_of(bpe.pieces), len(text.encode()) / 1e6
    return {
        "encode": (lambda: bpe.encode(text), size),
        "identities": (lambda: records(bpe.tokens(text), contents=contents), size),
        "tiktoken list": (lambda: fast.encode_ordinary(text), size),
        "tiktoken numpy": (lambda: fast.encode_to_numpy(text, disallowed_special=()), size),
        "tokenizers": (lambda: slow.encode(text, add_special_tokens=False).ids, size),
        "uids": (lambda: uids(SEED, UIDS), UIDS),
        "plain uids": (lambda: plain_uids(SEED, PLAIN_UIDS), PLAIN_UIDS),
    }


def peer_of(bpe: Bpe) -> tiktoken.Encoding:
    """The same vocabulary in tiktoken."""
    ids = {piece: i for i, piece in enumerate(bpe.pieces.tolist())}
    special = {token: ids.pop(token.encode()) for token in bpe.special}
    return tiktoken.Encoding(
        "peer", pat_str=bpe.pattern, mergeable_ranks=ids, special_tokens=special
    )


def measure() -> dict[str, object]:
    """All by turns."""
    text, name = mixed()
    bpe = Bpe.train([text], VOCABULARY, special=("<|end|>",))
    found = rates(works_of(bpe, text))
    peers = {peer: found[peer] for peer in ("tiktoken list", "tiktoken numpy", "tokenizers")}
    faster = max(peers.values())
    encode, identities = found["encode"] / faster, found["identities"] / faster
    over_plain = found["uids"] / found["plain uids"]
    return {
        "ok": encode >= TARGET_ENCODE
        and identities >= TARGET_IDENTITIES
        and found["uids"] >= TARGET_UIDS
        and over_plain >= TARGET_PLAIN,
        "figure": round(encode, 3),
        "target": TARGET_ENCODE,
        "unit": "of the faster peer's megabytes a second",
        "encode_mb_per_s": round(found["encode"], 2),
        "identities": round(identities, 3),
        "identities_target": TARGET_IDENTITIES,
        "identities_mb_per_s": round(found["identities"], 2),
        "uids_per_s": round(found["uids"]),
        "uids_target": TARGET_UIDS,
        "uids_over_plain": round(over_plain, 1),
        "uids_over_plain_target": TARGET_PLAIN,
        "vocabulary": bpe.vocab_size,
        "text": name,
        "peers": {peer: round(rate, 2) for peer, rate in peers.items()}
        | {"plain uids": round(found["plain uids"])},
    }


if __name__ == "__main__":
    result = measure()
    print(json.dumps(result))
    raise SystemExit(0 if result["ok"] else 1)
