"""Which personality a text shows, and how the personality towards a person moves.

Fifteen dimensions in [0, 1]. Each is computed from the measures of a text (see
`soma_agents.persona.measures` for these and their sources): a measure is mapped linearly from its
usual range onto [0, 1], a dimension is the weighted mean of its terms, and short texts, which show
little, are drawn towards the dimension's default. The ranges are ours, set on everyday chat.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, slots=True)
class Term:
    """A measure that speaks for a dimension: 0 at `low`, 1 at `high` (which may be the smaller)."""

    measure: str
    low: float
    high: float
    weight: float = 1.0

    def of(self, value: float) -> float:
        """Where a value lies between low and high, in [0, 1]."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Dimension:
    """A trait, the words for its two ends, and the measures it is computed from.

    A person's bad mood moves a `steady` one no lower than its default.
    """

    name: str
    meaning: str
    low: str
    high: str
    terms: tuple[Term, ...]
    default: float = 0.5
    steady: bool = False


_HEDGES = Term("hedges_per_word", 0.06, 0.0)
_EMOJI = Term("emoji_per_word", 0.0, 0.08)
_PLAY = Term("play_per_word", 0.0, 0.05)
_COURTESY = Term("courtesy_per_word", 0.0, 0.05)
_YOU = Term("second_person_per_word", 0.0, 0.1, weight=0.5)
_EXCLAIMS = Term("exclamations_per_sentence", 0.0, 0.8)

DIMENSIONS: tuple[Dimension, ...] = (
    Dimension(
        "warmth",
        "Speaks kindly and to the person.",
        "matter-of-fact",
        "warm",
        (Term("sentiment", -0.4, 0.9), _COURTESY, _YOU),
        default=0.6,
        steady=True,
    ),
    Dimension(
        "formality",
        "Keeps to the forms of written language.",
        "casual",
        "formal",
        (
            Term("function_word_formality", 32.0, 58.0),
            Term("contractions_per_word", 0.08, 0.0),
            Term("emoji_per_word", 0.05, 0.0, weight=0.5),
        ),
    ),
    Dimension("humour", "Jokes and laughs.", "serious", "humorous", (_PLAY,), default=0.4),
    Dimension(
        "curiosity",
        "Asks questions of its own.",
        "restrained with questions",
        "curious",
        (Term("questions_per_sentence", 0.0, 0.6),),
    ),
    Dimension(
        "empathy",
        "Takes up how the other feels.",
        "businesslike",
        "empathetic",
        (Term("care_per_word", 0.0, 0.06), _YOU),
        default=0.6,
        steady=True,
    ),
    Dimension(
        "assertiveness",
        "Stands by what it says.",
        "tentative",
        "confident",
        (Term("certainty_per_word", 0.0, 0.04), _HEDGES),
    ),
    Dimension(
        "verbosity", "Says much.", "brief", "thorough", (Term("words", 5, 150),), default=0.4
    ),
    Dimension(
        "optimism",
        "Sees the good side.",
        "sober",
        "optimistic",
        (Term("sentiment", -0.6, 0.9), Term("negative", 0.25, 0.0)),
        default=0.6,
        steady=True,
    ),
    Dimension(
        "directness",
        "Comes to the point.",
        "diplomatic",
        "direct",
        (Term("words_per_sentence", 28.0, 5.0), _HEDGES),
        default=0.6,
    ),
    Dimension("playfulness", "Plays.", "earnest", "playful", (_EMOJI, _PLAY), default=0.4),
    Dimension(
        "patience",
        "Explains step by step and stays polite.",
        "brisk",
        "patient",
        (Term("connectives_per_word", 0.0, 0.06), _COURTESY),
        default=0.6,
        steady=True,
    ),
    Dimension(
        "precision",
        "Gives numbers and exact words.",
        "easy-going about detail",
        "precise",
        (
            Term("numbers_per_word", 0.0, 0.08),
            Term("reading_grade", 2.0, 12.0),
            _HEDGES,
        ),
    ),
    Dimension(
        "creativity",
        "Uses many and uncommon words.",
        "plain",
        "imaginative",
        (Term("variety", 3.0, 9.0), Term("characters_per_word", 3.5, 5.5)),
    ),
    Dimension(
        "enthusiasm",
        "Is easily delighted.",
        "calm",
        "enthusiastic",
        (_EXCLAIMS, Term("delight_per_word", 0.0, 0.06)),
    ),
    Dimension(
        "expressiveness",
        "Shows feelings.",
        "reserved",
        "expressive",
        (Term("feeling", 0.0, 0.5), _EXCLAIMS, _EMOJI),
        default=0.4,
    ),
)
DEFAULTS: dict[str, float] = {dimension.name: dimension.default for dimension in DIMENSIONS}

HALF_SHOWN_WORDS = 15
"""A text of so many words counts half for itself, half for the defaults."""


def dimensions_of(measures: Mapping[str, float]) -> dict[str, float]:
    """The personality that a text with these measures shows; the default where nothing tells."""
    words = max(measures.get("words", 0.0), 0.0)
    confidence = words / (words + HALF_SHOWN_WORDS)
    return {
        dimension.name: dimension.default
        + confidence * (_raw(dimension, measures) - dimension.default)
        for dimension in DIMENSIONS
    }


def _raw(dimension: Dimension, measures: Mapping[str, float]) -> float:
    known = [term for term in dimension.terms if term.measure in measures]
    if not known:
        return dimension.default
    weighed = sum(term.weight * term.of(measures[term.measure]) for term in known)
    return weighed / sum(term.weight for term in known)


def distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Root mean square difference over all dimensions, in [0, 1]; what is missing is default."""
    squares = [
        (a.get(name, default) - b.get(name, default)) ** 2 for name, default in DEFAULTS.items()
    ]
    return sqrt(sum(squares) / len(squares))


# --- moving --------------------------------------------------------------------------------


class PersonalityRules(BaseModel):
    """How fast and how far a personality moves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    follow: float = Field(default=0.05, ge=0, le=1)
    """Share of the way towards how the person writes, per message."""
    heed: float = Field(default=0.15, ge=0, le=1)
    """Share of the way towards a reply rated 1, or away from one rated -1."""
    max_step: float = Field(default=0.03, gt=0, le=1)
    """Furthest a dimension moves at once."""
    floor: float = Field(default=0.05, ge=0, le=1)
    ceiling: float = Field(default=0.95, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Shift:
    """The personality afterwards, and what moved it."""

    dimensions: dict[str, float]
    because: str


def evolve(
    current: Mapping[str, float],
    *,
    measures_of_user: Mapping[str, float] | None = None,
    measures_of_reply: Mapping[str, float] | None = None,
    feedback: float = 0.0,
    rules: PersonalityRules,
) -> Shift:
    """One small step: towards how the person writes, and towards or away from a judged reply.

    `feedback` in [-1, 1] is the judgement of the reply with `measures_of_reply`.
    """
    before = DEFAULTS | dict(current)
    pull = dict.fromkeys(DEFAULTS, 0.0)
    causes: list[str] = []
    if measures_of_user is not None:
        causes.append("how you write")
        shown = dimensions_of(measures_of_user)
        for dimension in DIMENSIONS:
            towards = shown[dimension.name]
            if dimension.steady:
                towards = max(towards, dimension.default)
            pull[dimension.name] += rules.follow * (towards - before[dimension.name])
    if measures_of_reply is not None and feedback:
        causes.append("a reply you liked" if feedback > 0 else "a reply you did not like")
        shown = dimensions_of(measures_of_reply)
        for name in DEFAULTS:
            pull[name] += rules.heed * feedback * (shown[name] - before[name])
    after = {name: _step(before[name], pull[name], rules) for name in DEFAULTS}
    return Shift(after, because=describe_shift(before, after, " and ".join(causes)))


def _step(value: float, pull: float, rules: PersonalityRules) -> float:
    step = min(max(pull, -rules.max_step), rules.max_step)
    return min(max(value + step, rules.floor), rules.ceiling)


def around(set_points: Mapping[str, float], dimensions: Mapping[str, float]) -> dict[str, float]:
    """A personality that has moved from set-points of its own as another has from the defaults."""
    return {
        name: min(
            max(set_points.get(name, default) + dimensions.get(name, default) - default, 0), 1
        )
        for name, default in DEFAULTS.items()
    }


# --- in words ------------------------------------------------------------------------------

_TOLD = 3
_MOVED = 0.005
_TRAITS = 4
_NOTABLE = 0.15
_VERY = 0.35


def describe_shift(before: Mapping[str, float], after: Mapping[str, float], cause: str) -> str:
    """What moved most and why, e.g. `how you write: formality 0.50 → 0.47`."""
    moves = {name: after[name] - before.get(name, DEFAULTS[name]) for name in after}
    most = sorted(moves, key=lambda name: (-abs(moves[name]), name))[:_TOLD]
    told = [
        f"{name} {after[name] - moves[name]:.2f} → {after[name]:.2f}"
        for name in most
        if abs(moves[name]) >= _MOVED
    ]
    return f"{cause or 'nothing new'}: {', '.join(told) or 'no dimension moved'}"


def describe(dimensions: Mapping[str, float]) -> str:
    """The most marked traits as a sentence for a system prompt."""
    leanings = {d: dimensions.get(d.name, d.default) - 0.5 for d in DIMENSIONS}
    marked = [d for d in DIMENSIONS if abs(leanings[d]) >= _NOTABLE]
    marked.sort(key=lambda d: (-round(abs(leanings[d]), 6), d.name))
    traits = [_trait(d, leanings[d]) for d in marked[:_TRAITS]]
    if not traits:
        return "Be natural and balanced."
    *others, last = traits
    return f"Be {', '.join(others)} and {last}." if others else f"Be {last}."


def _trait(dimension: Dimension, leaning: float) -> str:
    word = dimension.high if leaning > 0 else dimension.low
    return f"very {word}" if abs(leaning) >= _VERY else word
