"""From what was read to examples: what is a target, in what context, on which side."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Literal

from arbiters.events import ChatMessage
from arbiters.records import Example
from arbiters.training_data_exporter.reading import (
    Fact,
    Import,
    Judgement,
    OfUser,
    Reading,
    Reply,
    is_trusted,
    ratings,
    shortened,
)
from policies.memory.questions import questions_about
from policies.privacy import (
    Excluded,
    Losing,
    Material,
    PrivacyRules,
    Target,
    Use,
    allowances,
    rating_of,
    repetitions,
    target_of,
    trust_of_source,
)
from policies.training import Group, Side, split
from policies.triggers import most_said

Kind = Literal["demonstration", "liked", "imported", "fact", "preference"]


@dataclass(slots=True)
class Built:
    """Examples, the sides that some groups must be on, and why other material was left out."""

    examples: list[Example] = field(default_factory=list[Example])
    pinned: dict[str, Side] = field(default_factory=dict[str, Side])
    excluded: Counter[str] = field(default_factory=Counter[str])
    said: dict[str, int] = field(default_factory=dict[str, int])
    """Word → number of messages, whether they are learnt from or not."""

    def leave_out(self, use: Use) -> None:
        """Count material that is no target."""
        self.excluded[use.because] += 1


def build(reading: Reading, rules: PrivacyRules) -> Built:
    """Every example there is, without repetitions and within each account's allowance."""
    built = Built()
    shared = len(reading.users) > 1
    for user, of in sorted(reading.users.items()):
        _from_replies(built, user, of, rules)
        _from_preferences(built, user, of, rules)
        for conversation, imported in of.imports.items():
            use = target_of(
                Material(
                    "imported",
                    trust="imported",
                    asked_by="imported",
                    deleted=conversation in of.deleted,
                ),
                rules,
            )
            if isinstance(use, Target):
                _from_import(built, f"{user}/{conversation}", user, imported)
            else:
                built.leave_out(use)
        for fact in of.facts.values():
            _from_fact(built, user, of, fact, rules, shared=shared)
    # What is held out by name stays when something repeats it, then what is newest.
    built.examples.sort(key=lambda e: e.id)
    built.examples.sort(key=lambda e: e.at, reverse=True)
    built.examples.sort(key=lambda e: built.pinned.get(e.group) != "heldout")
    _drop_repetitions(built)
    _keep_allowances(built, rules)
    built.excluded = +built.excluded
    built.said = most_said(_messages(reading))
    return built


def _messages(reading: Reading) -> Iterator[str]:
    """What people said in conversations that are still there."""
    for of in reading.users.values():
        for asked in of.asked.values():
            if asked.conversation not in of.deleted:
                yield asked.prompt[-1].content


def sides(built: Built, *, heldout_share: float) -> dict[Side, list[Example]]:
    """The examples on their sides, oldest first."""
    newest: dict[str, datetime] = {}
    for example in built.examples:
        newest[example.group] = max(newest.get(example.group, example.at), example.at)
    groups = [Group(name, at, built.pinned.get(name)) for name, at in newest.items()]
    side_of = split(groups, heldout_share=heldout_share)
    found: dict[Side, list[Example]] = {"train": [], "validation": [], "heldout": []}
    for example in sorted(built.examples, key=lambda e: (e.at, e.id)):
        found[side_of[example.group]].append(example)
    return found


# --- replies -------------------------------------------------------------------------------


def _from_replies(built: Built, user: str, of: OfUser, rules: PrivacyRules) -> None:
    for inference, reply in of.replies.items():
        use = _use(of, inference, rules)
        answers = of.judgements.get(("demonstration", inference), list[Judgement]())
        better = [answer for answer in answers if is_trusted(answer)]
        if better and not isinstance(use, Excluded):
            _from_demonstration(built, reply, better[-1], user=user, use=use, rules=rules)
        elif not reply.whole or not reply.content.strip():
            built.excluded["it was broken off"] += 1
        elif isinstance(use, Target):
            events = (reply.asked.event, reply.event)
            liked = _example("liked", reply, reply.content, user=user, events=events, at=reply.at)
            built.examples.append(liked)
        else:
            built.leave_out(use)


def _from_demonstration(
    built: Built, reply: Reply, better: Judgement, *, user: str, use: Use, rules: PrivacyRules
) -> None:
    """A better answer is a target, and wins over the reply it corrects unless that was liked."""
    wanted = target_of(
        Material("demonstration", trust_of_source(better.source), asked_by=reply.asked.trust),
        rules,
    )
    if not isinstance(wanted, Target):
        built.leave_out(wanted)
        return
    answer = str(better.value)
    example = _example(
        "demonstration",
        reply,
        answer,
        user=user,
        events=(reply.asked.event, reply.event, better.event),
        at=better.at,
    )
    built.examples.append(example)
    if not isinstance(use, Target) and _differ(answer, reply.content):
        built.examples.append(_as_pair(example, reply.content))


def _from_preferences(built: Built, user: str, of: OfUser, rules: PrivacyRules) -> None:
    for (name, inference), judgements in of.judgements.items():
        loser, winner = of.replies.get(inference), of.replies.get(str(judgements[-1].value))
        if name != "preference" or not is_trusted(judgements[-1]):
            continue
        if loser is None or winner is None or not _may_be_pair(of, loser, winner):
            built.excluded["a preference between replies that cannot be compared"] += 1
            continue
        if isinstance(_use(of, str(judgements[-1].value), rules), Losing):
            built.excluded["a preference for a reply that was disliked"] += 1
            continue
        example = _example(
            "preference",
            loser,
            winner.content,
            user=user,
            events=(loser.asked.event, loser.event, winner.event, judgements[-1].event),
            at=judgements[-1].at,
        )
        built.examples.append(_as_pair(example, loser.content))


def _may_be_pair(of: OfUser, loser: Reply, winner: Reply) -> bool:
    """Both answer the same trusted message, in conversations that are still there."""
    return (
        {loser.asked.conversation, winner.asked.conversation}.isdisjoint(of.deleted)
        and loser.asked.prompt[-1] == winner.asked.prompt[-1]
        and {loser.asked.trust, winner.asked.trust} <= {"owner", "imported"}
        and winner.whole
        and _differ(winner.content, loser.content)
    )


def _use(of: OfUser, inference: str, rules: PrivacyRules) -> Use:
    asked = of.replies[inference].asked
    material = Material(
        "reply",
        trust="self",
        asked_by=asked.trust,
        rating=rating_of(ratings(of, inference)),
        deleted=asked.conversation in of.deleted,
    )
    return target_of(material, rules)


def _differ(chosen: str, rejected: str) -> bool:
    """Whether there is a choice between two answers at all."""
    both = (chosen.strip(), rejected.strip())
    return all(both) and both[0] != both[1]


def _example(
    kind: Kind, reply: Reply, answer: str, *, user: str, events: tuple[str, ...], at: datetime
) -> Example:
    messages = (*reply.asked.prompt, ChatMessage(role="assistant", content=answer))
    return Example(
        id=_identity(kind, messages),
        kind=kind,
        messages=messages,
        group=f"{user}/{reply.asked.conversation}",
        events=events,
        user=user,
        trust="self" if kind == "liked" else "owner",
        at=at,
    )


def _as_pair(example: Example, rejected: str) -> Example:
    """The same answer as the better side of a preference."""
    identity = _identity("preference", example.messages, rejected)
    return replace(example, id=identity, kind="preference", rejected=rejected)


def _identity(kind: str, messages: Sequence[ChatMessage], rejected: str = "") -> str:
    turns = [(message.role, message.content) for message in messages]
    return sha256(repr((kind, turns, rejected)).encode()).hexdigest()[:16]


# --- imports and facts ---------------------------------------------------------------------


def _from_import(built: Built, group: str, user: str, imported: Import) -> None:
    """Every assistant's turn that follows a user's."""
    if imported.held_out:
        built.pinned[group] = "heldout"
    for place, (before, answer) in enumerate(pairwise(imported.messages), start=1):
        if (before.role, answer.role) != ("user", "assistant") or not answer.content.strip():
            continue
        messages = (*shortened(imported.messages[:place]), answer)
        built.examples.append(
            Example(
                id=_identity("imported", messages),
                kind="imported",
                messages=messages,
                group=group,
                events=(imported.event,),
                user=user,
                trust="imported",
                at=imported.at,
            )
        )


def _from_fact(
    built: Built, user: str, of: OfUser, fact: Fact, rules: PrivacyRules, *, shared: bool
) -> None:
    """A fact in all its phrasings; one of them is held back to see whether the fact is known."""
    stated, asked = fact.stated, fact.asked
    gone = bool(stated.message) and (asked is None or asked.conversation in of.deleted)
    trust = asked.trust if asked else "owner"
    use = target_of(Material("fact", trust, deleted=gone, shared=shared), rules)
    if not isinstance(use, Target):
        built.leave_out(use)
        return
    pairs = questions_about(stated.subject, stated.value, stated.kind)
    group = f"{user}/fact/{stated.subject}"
    held_back = int.from_bytes(sha256(group.encode()).digest()[:4]) % len(pairs)
    built.pinned |= {group: "train", f"{group}/held back": "validation"}
    for number, (question, answer) in enumerate(pairs):
        messages = (
            ChatMessage(role="user", content=question),
            ChatMessage(role="assistant", content=answer),
        )
        built.examples.append(
            Example(
                id=_identity("fact", messages),
                kind="fact",
                messages=messages,
                group=f"{group}/held back" if number == held_back else group,
                events=(fact.event,),
                user=user,
                trust="owner",
                at=fact.at,
            )
        )


# --- keeping the measure -------------------------------------------------------------------


def _drop_repetitions(built: Built) -> None:
    """The first of equal or nearly equal examples stays; pairs are compared with pairs."""
    texts = [
        f"{'pair' if e.rejected else 'target'} {e.messages[-2].content}\n{e.messages[-1].content}"
        f"\n{e.rejected or ''}"
        for e in built.examples
    ]
    repeated = repetitions(texts)
    built.excluded["it repeats another"] += len(repeated)
    built.examples = [e for place, e in enumerate(built.examples) if place not in repeated]


def _keep_allowances(built: Built, rules: PrivacyRules) -> None:
    """Of an account that gave too much, what comes first stays."""
    given = Counter[str]()
    for example in built.examples:
        given[example.user] += _bytes(example)
    allowed = allowances(given, rules)
    taken: defaultdict[str, int] = defaultdict(int)
    kept: list[Example] = []
    for example in built.examples:
        taken[example.user] += _bytes(example)
        if taken[example.user] <= allowed[example.user]:
            kept.append(example)
        else:
            built.excluded["more than one account's share"] += 1
    built.examples = kept


def _bytes(example: Example) -> int:
    return len(example.messages[-1].content.encode())


def kinds(examples: Mapping[Side, Sequence[Example]]) -> dict[str, int]:
    """How many examples of each kind."""
    return dict(sorted(Counter(e.kind for e in _all(examples)).items()))


def _all(examples: Mapping[Side, Sequence[Example]]) -> Iterator[Example]:
    for some in examples.values():
        yield from some
