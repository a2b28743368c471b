"""How a known fact may be asked for, and the answer: what a model learns a fact from.

Each fact gets at least `PHRASINGS` questions. They and their answers follow from the fact alone.
"""

import re
from typing import Literal

PHRASINGS = 7
"""Fewest ways of asking for one fact: with fewer than five a model was not seen to learn it."""


def questions_about(
    subject: str, value: str, kind: Literal["fact", "preference"]
) -> list[tuple[str, str]]:
    """(question in the person's words, answer to the person), at least `PHRASINGS` of them."""
    root, *rest = subject.split(".")
    name = root
    if rest:
        name = f"{root}.{rest[-1]}" if f"{root}.{rest[-1]}" in _ASKED else f"{root}.*"
    questions, answers = _ASKED.get(name) or (_FACT if kind == "fact" else _PREFERENCE)
    asked = _words(root, rest, name, value)
    said = _words(root, rest, name, _second_person(value))
    return [
        (
            _sentence(question.format_map(asked)),
            _sentence(answers[number % len(answers)].format_map(said)),
        )
        for number, question in enumerate(questions)
    ]


def subject_words(subject: str) -> str:
    """A subject as one would say it: `pet.dog.name` → `dog's name`."""
    parts = [part.replace("_", " ") for part in subject.split(".")]
    if len(parts) > 2 and parts[-1] == "name":  # noqa: PLR2004 - pet.dog.name
        return f"{parts[1]}'s name"
    return " ".join(parts)


# --- words ---------------------------------------------------------------------------------


def _words(root: str, rest: list[str], name: str, value: str) -> dict[str, str]:
    """What the phrasings may name: value, key, subject, `a job`, the thing liked, the wish."""
    key, said = _key(root, rest, name), subject_words(".".join([root, *rest]))
    return {
        "v": value,
        "k": key,
        "s": said,
        "a": _article(value),
        "o": _object(value),
        "r": _as_promised(value),
        "are": _be(key),
        "be": _be(said),
    }


_TO_SECOND_PERSON = (
    (r"\bI'm\b", "you're"),
    (r"\bI am\b", "you are"),
    (r"\bI was\b", "you were"),
    (r"\bI\b", "you"),
    (r"\bmyself\b", "yourself"),
    (r"\bme\b|\bus\b", "you"),
    (r"\bmine\b|\bours\b", "yours"),
    (r"\bmy\b|\bour\b", "your"),
)


def _second_person(value: str) -> str:
    for pattern, word in _TO_SECOND_PERSON:
        value = re.sub(pattern, word, value, flags=re.IGNORECASE if "I" not in pattern else 0)
    return value


def _as_promised(value: str) -> str:
    """A wish in SOMA's mouth: `keep your answers short` → `keep my answers short`."""
    return re.sub(r"\byour\b", "my", re.sub(r"\b(?:me|us)\b", "you", value))


def _key(root: str, rest: list[str], name: str) -> str:
    """The part of the subject that a question names: `dog` of `pet.dog.name`."""
    parts = rest if name.endswith("*") else rest[:-1]
    return " ".join(parts or [root]).replace("_", " ")


def _article(value: str) -> str:
    if re.match(r"(?:an?|the) ", value, re.IGNORECASE):
        return value
    return f"{'an' if value[:1].lower() in 'aeiou' else 'a'} {value}"


def _object(value: str) -> str:
    """`prefer tea to coffee` → `tea`."""
    return re.split(r" (?:to|over|rather than) ", value.partition(" ")[2] or value)[0]


def _be(thing: str) -> str:
    return "are" if thing.endswith("s") and not thing.endswith("ss") else "is"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in ".?!" else f"{text}."


# --- phrasings -----------------------------------------------------------------------------

_Asked = tuple[tuple[str, ...], tuple[str, ...]]

_FACT: _Asked = (
    (
        "What {be} my {s}?",
        "Can you tell me my {s}?",
        "Do you remember my {s}?",
        "What did I tell you about my {s}?",
        "Remind me: what {be} my {s}?",
        "Do you know what my {s} {be}?",
        "I forgot what I told you. What {be} my {s}?",
    ),
    ("Your {s} {be} {v}.", "You told me that your {s} {be} {v}."),
)
_PREFERENCE: _Asked = (
    (
        "What do I prefer when it comes to {s}?",
        "What is my preference for {s}?",
        "Do you know my preference for {s}?",
        "What did I tell you about {s}?",
        "Remind me what I said about {s}.",
        "Do you remember my wishes about {s}?",
        "What have I asked for as to {s}?",
    ),
    ("As to {s}, you told me: {v}.", "Your preference for {s} is: {v}."),
)
_ASKED: dict[str, _Asked] = {
    "name": (
        (
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you know my name?",
            "Do you remember what I am called?",
            "Can you tell me my name?",
            "Remind me what my name is.",
            "Which name did I tell you?",
        ),
        ("Your name is {v}.", "You are {v}."),
    ),
    "name.preferred": (
        (
            "What should you call me?",
            "How do I like to be called?",
            "What do I want to be called?",
            "By what name should you address me?",
            "How should you address me?",
            "Do you remember what to call me?",
            "What did I ask you to call me?",
        ),
        ("You like to be called {v}.", "You asked me to call you {v}."),
    ),
    "home": (
        (
            "Where do I live?",
            "Which place do I live in?",
            "Do you know where I live?",
            "What is my home town?",
            "Where is my home?",
            "Can you tell me where I live?",
            "Remind me where I live.",
        ),
        ("You live in {v}.", "Your home is in {v}."),
    ),
    "origin": (
        (
            "Where am I from?",
            "Where do I come from?",
            "Do you know where I am from?",
            "What place am I originally from?",
            "What did I say about where I come from?",
            "Can you tell me where I am from?",
            "Remind me where I come from.",
        ),
        ("You are from {v}.", "You come from {v}."),
    ),
    "birthday": (
        (
            "When is my birthday?",
            "What day is my birthday?",
            "When was I born?",
            "Do you know my birthday?",
            "Do you remember when my birthday is?",
            "Can you tell me my birthday?",
            "Remind me when my birthday is.",
        ),
        ("Your birthday is on {v}.", "You told me your birthday: {v}."),
    ),
    "birth.year": (
        (
            "In which year was I born?",
            "What year was I born in?",
            "When was I born?",
            "Do you know the year of my birth?",
            "What is my year of birth?",
            "Can you tell me what year I was born?",
            "Remind me which year I was born in.",
        ),
        ("You were born in {v}.",),
    ),
    "birth.place": (
        (
            "Where was I born?",
            "What is my place of birth?",
            "In which place was I born?",
            "Do you know where I was born?",
            "What is my birthplace?",
            "Can you tell me where I was born?",
            "Remind me where I was born.",
        ),
        ("You were born in {v}.",),
    ),
    "age": (
        (
            "How old am I?",
            "What is my age?",
            "What's my age?",
            "Do you know how old I am?",
            "Do you remember my age?",
            "Can you tell me how old I am?",
            "Remind me how old I said I was.",
        ),
        ("You are {v} years old.", "You told me that you are {v} years old."),
    ),
    "job": (
        (
            "What do I do for a living?",
            "What is my job?",
            "What do I work as?",
            "What is my profession?",
            "Do you know what my job is?",
            "Can you tell me what I do for work?",
            "Remind me what my occupation is.",
        ),
        ("You work as {a}.", "You are {a}."),
    ),
    "employer": (
        (
            "Where do I work?",
            "Who do I work for?",
            "Who is my employer?",
            "Do you know where I work?",
            "Which place do I work at?",
            "Can you tell me who I work for?",
            "Remind me where I work.",
        ),
        ("You work for {v}.",),
    ),
    "studies": (
        (
            "What do I study?",
            "What am I studying?",
            "What is my subject?",
            "Do you know what I study?",
            "Which field am I studying?",
            "Can you tell me what I study?",
            "Remind me what I am studying.",
        ),
        ("You study {v}.", "You are studying {v}."),
    ),
    "diet": (
        (
            "What is my diet?",
            "What kind of diet do I follow?",
            "Do you know how I eat?",
            "What should you know before suggesting a meal to me?",
            "What did I tell you about my diet?",
            "Is there food that I leave out?",
            "Remind me what I told you about how I eat.",
        ),
        ("You are {v}.", "You told me that you are {v}."),
    ),
    "allergy.*": (
        (
            "Am I allergic to {v}?",
            "What am I allergic to?",
            "Do I have any allergies?",
            "Which food or thing must I avoid?",
            "Do you know about my allergy?",
            "What did I tell you about my allergies?",
            "Can you remind me of my allergy to {v}?",
        ),
        ("You are allergic to {v}.", "You told me that you are allergic to {v}."),
    ),
    "language.*": (
        (
            "Do I speak {v}?",
            "Can I speak {v}?",
            "Is {v} a language I speak?",
            "Could you talk to me in {v}?",
            "Would I understand {v}?",
            "What did I tell you about {v}?",
            "Do you remember whether I speak {v}?",
        ),
        ("Yes, you speak {v}.", "You told me that you speak {v}."),
    ),
    "language.native": (
        (
            "What is my native language?",
            "What is my mother tongue?",
            "What is my first language?",
            "Which language did I grow up with?",
            "Do you know my native language?",
            "Can you tell me my mother tongue?",
            "Remind me what my first language is.",
        ),
        ("Your native language is {v}.", "Your mother tongue is {v}."),
    ),
    "pet.name": (
        (
            "What is my {k} called?",
            "What is my {k}'s name?",
            "What is the name of my {k}?",
            "Do you know my {k}'s name?",
            "Do you remember what my {k} is called?",
            "Can you tell me the name of my {k}?",
            "Remind me what my {k}'s name is.",
        ),
        ("Your {k} is called {v}.", "Your {k}'s name is {v}."),
    ),
    "favourite.*": (
        (
            "What {are} my favourite {k}?",
            "Which {k} did I call my favourite?",
            "Which {k} do I like best?",
            "Do you know my favourite {k}?",
            "Do you remember which {k} I like most?",
            "Can you tell me my favourite {k}?",
            "Remind me what my favourite {k} {are}.",
        ),
        ("Your favourite {k} {are} {v}.",),
    ),
    "taste.*": (
        (
            "How do I feel about {o}?",
            "What do I think of {o}?",
            "What did I tell you about {o}?",
            "Do you remember what I think of {o}?",
            "Do you know my taste as to {o}?",
            "What is my opinion on {o}?",
            "Remind me how I feel about {o}.",
        ),
        ("You {v}.", "You told me that you {v}."),
    ),
    "reply.language": (
        (
            "In which language should you answer me?",
            "What language do I want your answers in?",
            "Which language should you use with me?",
            "Do you remember which language I prefer?",
            "What did I say about the language of your answers?",
            "Which language do I like you to speak?",
            "Remind me which language I asked you to use.",
        ),
        ("You asked me to answer in {v}.", "I should answer you in {v}."),
    ),
    "reply.length": (
        (
            "How long should your answers be?",
            "How long do I like your answers to be?",
            "What did I say about the length of your answers?",
            "Do I want short or long answers?",
            "Do you remember how long your answers should be?",
            "What length of answer did I ask for?",
            "Remind me how much you should write.",
        ),
        ("You asked me to {r}.", "I should {r}."),
    ),
    "reply.style": (
        (
            "How should you answer me?",
            "How do I like your answers?",
            "In what style should you answer me?",
            "What did I ask you about the way you answer?",
            "Do you remember how I want you to answer?",
            "Which style of answer do I prefer?",
            "Remind me how you should talk to me.",
        ),
        ("You asked me to {r}.", "I should {r}."),
    ),
}
_ASKED["family.name"] = _ASKED["pet.name"]
