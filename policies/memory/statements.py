"""What a person's words say about them that lasts.

Precision comes before recall: a sentence counts only when it is plainly a first-person statement.
Questions, negations, hypotheticals, quotations, text to be worked on and other people's words do
not. The patterns are English.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["fact", "preference"]

MAX_TEXT_CHARACTERS = 20_000
"""What is longer was pasted; only its beginning is read."""
MAX_VALUE_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Statement:
    """Something lasting that a person said about themselves; `quote` is the sentence."""

    subject: str
    value: str
    kind: Kind
    quote: str


def facts_stated(text: str, *, trust: str = "owner") -> list[Statement]:
    """The facts and preferences in a message; one a subject, the last one counts.

    Only the owner's own words can state a fact: with any other `trust` there is none.
    """
    sentences = own_sentences(text)
    if trust != "owner" or any(_WORKS_ON_ABOVE.search(sentence) for sentence in sentences):
        return []
    asks = any(sentence.endswith("?") for sentence in sentences)
    found: dict[str, Statement] = {}
    for sentence in sentences:
        stated = _stated_in(sentence, asks=asks)
        if not stated and is_task(sentence):
            break  # What follows is material to work on, not about the person.
        for statement in stated:
            found.pop(statement.subject, None)
            found[statement.subject] = statement
    return list(found.values())


def own_sentences(text: str) -> list[str]:
    """The sentences of a message in the person's own words: no code, no quotations."""
    return _sentences(_own_words(text[:MAX_TEXT_CHARACTERS]))


def is_task(sentence: str) -> bool:
    """Whether a sentence begins by giving work to do."""
    return _TASK.match(sentence) is not None


# --- reading sentences ---------------------------------------------------------------------

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_QUOTED_LINE = re.compile(r"^\s*>.*$", re.MULTILINE)
_QUOTED = re.compile(r"[\"“«]([^\"”»]{0,1000})[\"”»]")
_FIRST_PERSON = re.compile(r"\b(?:i|i'm|my|me)\b", re.IGNORECASE)
_SHORT_QUOTE_WORDS = 3

_FULL_STOP = re.compile(
    r"(?<=[.!?])(?<!\bDr\.)(?<!\bSt\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\b[A-Z]\.)[)\"']?\s+|\n+"
)
_CLAUSE = re.compile(
    r"(?:\s*[,;\u2013\u2014]\s*(?:(?:and|but|so|also|plus)\s+)?|\s+(?:and|but|so|plus)\s+)"
    r"(?=(?:i|i'm|i am|my(?: [\w'-]+){1,4} (?:is|are)|call me|please)\b)",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?:(?:hi|hello|hey|there|yes|yeah|no|ok|okay|well|so|oh|also|and|but|btw|by the way|actually|"
    r"anyway|fyi|just so you know|for the record|(?:please )?remember(?: that)?|note that|soma|"
    r"good (?:morning|evening|afternoon)|thanks|thank you|nice to meet you|sorry|sure|hm+|as i said)"
    r"\b[,!:]?\s+)+",
    re.IGNORECASE,
)
_UNREAL = re.compile(
    r"(?:if|when|whenever|unless|until|once|suppose|imagine|pretend|assum\w+|say|let's say|what if|"
    r"as if|were|had|maybe|perhaps|someday|one day|in (?:my|a|the) (?:dream|story|novel|game|book|"
    r"movie|film|song)|for example|e\.g\.)\b",
    re.IGNORECASE,
)
_REPORTED = re.compile(
    r"\b(?:said|says?|told|tells?|thinks?|thought|believes?|claims?|wrote|writes?|asks?|asked|"
    r"sings?|sang|heard|reads?|dream\w*|if|when|imagine|pretend|suppose|character|wish\w*|like)\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:not|never|no longer|neither|nor|anymore|used to|wish|would|could|might|maybe|perhaps|"
    r"if|unless|almost|supposedly)\b|n't\b|\?",
    re.IGNORECASE,
)
_TASK = re.compile(
    r"(?:please |can you |could you |would you |will you |help me |now |let's )*"
    r"(?:translate|rewrite|rephrase|paraphrase|proofread|summari[sz]e|correct|improve|edit|fix|"
    r"continue|complete|finish|write|draft|compose|pretend|imagine|suppose|assume|role-?play|act|"
    r"say|repeat|analy[sz]e|classify|here is|here's|consider|the following)\b",
    re.IGNORECASE,
)
_WORKS_ON_ABOVE = re.compile(
    r"^(?:please |can you |could you )*(?:translate|rewrite|rephrase|paraphrase|proofread|"
    r"summari[sz]e|correct|improve|edit|fix|analy[sz]e|classify)\b.*"
    r"\b(?:above|this|that|these|those|it|previous|text|sentences?)\b",
    re.IGNORECASE,
)


def _own_words(text: str) -> str:
    """The text without code, quoted lines and quoted speech."""

    def unquote(match: re.Match[str]) -> str:
        inner = match.group(1)
        speech = len(inner.split()) > _SHORT_QUOTE_WORDS or _FIRST_PERSON.search(inner)
        return "…" if speech else inner

    text = _QUOTED_LINE.sub(" ", _CODE.sub(" … ", text.replace("\u2019", "'")))
    return _QUOTED.sub(unquote, text)


def _sentences(text: str) -> list[str]:
    parts = (" ".join(part.split()) for part in _FULL_STOP.split(text))
    return [part for part in parts if part]


def _stated_in(sentence: str, *, asks: bool) -> list[Statement]:
    """What one sentence states; `asks` says that the message also asks something."""
    if sentence.endswith("?"):
        return []
    found: list[Statement] = []
    for clause in _CLAUSE.split(sentence.rstrip(" .!…:;,")):
        bare = _FILLER.sub("", clause, count=1) if _FILLER.match(clause) else clause
        if _UNREAL.match(bare):
            break
        stated = [] if _DOUBT.search(bare) else _read_clause(bare, asks=asks)
        found += [Statement(subject, value, kind, sentence) for subject, value, kind in stated]
        if not stated and _REPORTED.search(bare):
            break
    return found


def _read_clause(clause: str, *, asks: bool) -> list[tuple[str, str, Kind]]:
    for pattern, read in _PATTERNS:
        if match := pattern.fullmatch(clause):
            stated = read(match)
            if stated and asks and stated[0][0].startswith("reply.") and not _ALWAYS.search(clause):
                return []  # "Answer in one word: …" is about this question alone.
            return [one for one in stated if 0 < len(one[1]) <= MAX_VALUE_CHARACTERS]
    return []


# --- reading values ------------------------------------------------------------------------

_Read = Callable[[re.Match[str]], list[tuple[str, str, Kind]]]

_MONTH = r"jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?"
_DATE = re.compile(rf"\b(?:{_MONTH})\b|\b\d{{1,4}}[./-]\d{{1,2}}", re.IGNORECASE)
_ALWAYS = re.compile(
    r"\b(?:always|from now on|in (?:the )?future|every time|answers|replies)\b", re.IGNORECASE
)
_TAIL = re.compile(
    r"\s*(?:[,;:(]|\s[-\u2013\u2014]\s|\b(?:because|since|but|so|when|while|whenever|though|although|which|who|"
    r"even|at the moment|right now|now|these days|nowadays|currently|too|as well|by the way|btw|"
    r"please|thanks|with my|for now|for (?:\d+|many|a few|some) years?|(?:very|so) much|a lot|"
    r"(?:last|this) (?:year|month|week|spring|summer|autumn|fall|winter)|in \d{4}|\w+ years? ago)\b).*$",
    re.IGNORECASE,
)
_PLACE_TAIL = re.compile(r",\s+(?![A-Z]).*$")
_VAGUE = re.compile(
    r"(?:it|this|that|these|those|them|him|her|you|he|she|they|us|me|myself|when|how|what|where|why|"
    r"who|your|one|some of|both|either|all|everything|nothing|anything|here|there|to (?:think|say|"
    r"admit|know|believe|see|hear|have|be|go)|being|a lot|my life|"
    r"the (?:answer|reply|response|idea|way|fact|first|second|third|last|latter|former|ones?|result|"
    r"story|poem|code|version|design|look|sound|thought|previous|new|joke|suggestion|plan|part|"
    r"moment|past|future|same))\b|(?:home|night|nights|once|fear|peace|hope|free|a living|denial|work)$",
    re.IGNORECASE,
)
_PARTICLE = re.compile(r"de|van|von|der|den|la|le|du|da|del|di|al|bin|ibn|ter|zu|y")
_NOT_A_NAME = re.compile(
    r"an?|the|not|important|back|later|tomorrow|tonight|now|again|maybe|crazy|old|when|asap|stupid|"
    r"soon|any(?:time|thing)|some(?:time|thing)|please|what(?:ever)?|that|this|it|unknown|irrelevant|"
    r"long|short|common|on|unusual|hard|secret"
)
_LANGUAGE = re.compile(
    r"\b(?:arabic|bengali|bulgarian|cantonese|catalan|chinese|croatian|czech|danish|dutch|english|"
    r"estonian|finnish|french|german|greek|hebrew|hindi|hungarian|icelandic|indonesian|irish|italian|"
    r"japanese|korean|latin|latvian|lithuanian|malay|mandarin|norwegian|persian|polish|portuguese|"
    r"punjabi|romanian|russian|serbian|slovak|slovenian|spanish|swahili|swedish|tagalog|tamil|telugu|"
    r"thai|turkish|ukrainian|urdu|vietnamese|welsh)\b",
    re.IGNORECASE,
)
_LENGTH = re.compile(
    r"\b(?:short\w*|brief\w*|concise\w*|long|length|detail\w*|sentences?|words?|paragraphs?)\b",
    re.IGNORECASE,
)
_MOST_WORDS = 8
_LIST_ITEM_WORDS = 3
_AGES = range(3, 121)


def _slug(text: str) -> str:
    words = re.findall(r"[\w]+", text.casefold())
    return "_".join(word for word in words if word not in {"a", "an", "the", "to", "my"})


def _plain(value: str, tail: re.Pattern[str] = _TAIL) -> str:
    """The value without what only hangs on to it; empty when it points at the context."""
    value = tail.sub("", value).strip(" '")
    if _VAGUE.match(value) or not _slug(value) or len(value.split()) > _MOST_WORDS:
        return ""
    return value


def _name(value: str) -> str:
    words = _TAIL.sub("", value).split()
    if len(words) == 1 and words[0].islower() and not _NOT_A_NAME.fullmatch(words[0]):
        return words[0].capitalize()
    proper = all(not word[0].islower() or _PARTICLE.fullmatch(word) for word in words)
    return " ".join(words) if proper and words and words[0][0].isalpha() else ""


def _items(value: str) -> list[str]:
    """`jazz, tea and chess` → three items; anything that is no plain list is one."""
    if "," not in value:
        return [value]
    items = [item for item in re.split(r",\s*(?:and\s+)?|\s+and\s+", value) if item]
    return items if all(len(item.split()) <= _LIST_ITEM_WORDS for item in items) else [value]


def _fact(subject: str, clean: Callable[[str], str] = _plain, kind: Kind = "fact") -> _Read:
    """A reader of group `v` (or `w`) under `subject`, in which {k} stands for group `k`."""

    def read(match: re.Match[str]) -> list[tuple[str, str, Kind]]:
        groups = match.groupdict()
        value = clean(groups["v"] or groups["w"])
        return [(subject.format(k=_slug(groups.get("k") or "")), value, kind)] if value else []

    return read


def _place(value: str) -> str:
    value = _PLACE_TAIL.sub("", value)
    town, comma, land = value.partition(",")
    return _plain(town) and _plain(town) + comma + (f" {_plain(land)}" if comma else "")


def _date(value: str) -> str:
    return value.strip() if _DATE.search(value) and re.search(r"\d", value) else ""


def _age(value: str) -> str:
    return value if int(value) in _AGES else ""


def _taste(match: re.Match[str]) -> list[tuple[str, str, Kind]]:
    verb = match["verb"].lower()
    found: list[tuple[str, str, Kind]] = []
    for item in _items(match["v"]):
        if value := _plain(item):
            thing = re.split(r" (?:to|over|rather than) ", value)[0] if verb == "prefer" else value
            found.append((f"taste.{_slug(thing)}", f"{verb} {value}", "preference"))
    return found


def _allergy(match: re.Match[str]) -> list[tuple[str, str, Kind]]:
    items = map(_plain, re.split(r",\s*(?:and\s+)?|\s+and\s+", match["v"]))
    return [(f"allergy.{_slug(item)}", item, "fact") for item in items if item]


def _speaks(match: re.Match[str]) -> list[tuple[str, str, Kind]]:
    languages = _LANGUAGE.findall(match["v"])
    return [(f"language.{word.lower()}", word.capitalize(), "fact") for word in languages]


def _reply(match: re.Match[str]) -> list[tuple[str, str, Kind]]:
    """How SOMA should answer: the value is what was asked, as an imperative."""
    value = f"{match['verb'].lower()} {match['v']}".removesuffix(" please")
    if len(value.split()) > _MOST_WORDS:
        return []
    if language := _LANGUAGE.search(value):
        return [("reply.language", language[0].capitalize(), "preference")]
    aspect = "length" if _LENGTH.search(value) else "style"
    return [(f"reply.{aspect}", value, "preference")]


_AM = r"i(?:'m| am)"
_VERY = r"(?:(?:really|also|absolutely|just|do|truly|quite|always|mostly|particularly|especially|personally) )*"
_PETS = "dog|cat|puppy|kitten|hamster|rabbit|bunny|parrot|bird|horse|pony|turtle|tortoise|goldfish|guinea pig|snake|lizard|budgie|ferret|pet"
_KIN = (
    "wife|husband|partner|boyfriend|girlfriend|fiancée?|mother|mom|mum|father|dad|sister|brother|"
    "daughter|son|baby|grandmother|grandma|grandfather|grandpa|aunt|uncle|cousin|niece|nephew|friend"
)
_WHICH = r"(?:(?:older|elder|eldest|oldest|younger|youngest|little|big|best|first|second|new) )?"
_NAMED = r" (?:called|named)"
_CALLED = r"(?:'s name is| is (?:called|named)|'s (?:called|named))"
_JOBS = (
    "accountant|actor|actress|architect|artist|baker|barber|biologist|builder|butcher|carpenter|chef|"
    "chemist|consultant|cook|dentist|designer|developer|doctor|driver|economist|electrician|engineer|"
    "farmer|firefighter|gardener|hairdresser|historian|illustrator|journalist|judge|lawyer|lecturer|"
    "librarian|mathematician|mechanic|midwife|musician|nurse|painter|paramedic|pharmacist|"
    "photographer|physicist|pilot|plumber|policeman|politician|postman|professor|programmer|"
    "psychologist|researcher|sailor|scientist|secretary|singer|soldier|student|surgeon|tailor|teacher|"
    "therapist|translator|vet|waiter|waitress|writer"
)
_NO_SUBJECT = r"(?:for|at|in|hard|with|every)\b"
_HOW_MUCH = r"(?:really|very|severely|highly|also|slightly)"
_ASKING = r"(?:please,? |always |from now on,? |only )*"
_TO_ME = r"(?: to)?(?: me)?(?: always| only)?"
_MANNER = (
    r"(?P<v>(?:in|with) .+|briefly|concisely|shortly|short|formally|informally|simply|politely)"
)
_TRAIT = (
    r"(?:more |less |very )?(?:brief|concise|short|direct|formal|informal|polite|friendly|detailed|"
    r"precise)"
)

_PATTERNS: tuple[tuple[re.Pattern[str], _Read], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), read)
    for pattern, read in (
        (rf"(?:my name is|my name's|{_AM} called) (?P<v>.+)", _fact("name", _name)),
        (
            r"(?:please |you can |you may |just )?call me (?P<v>.+)",
            _fact("name.preferred", _name, "preference"),
        ),
        (
            r"i (?:usually )?(?:go by|prefer to be called|like to be called) (?P<v>.+)",
            _fact("name.preferred", _name, "preference"),
        ),
        (rf"(?:i (?:now )?live in|{_AM} (?:living|based) in) (?P<v>.+)", _fact("home", _place)),
        (r"i (?:just |recently )?moved to (?P<v>.+)", _fact("home", _place)),
        (
            rf"(?:{_AM}|i (?:originally )?come) (?:originally )?from (?P<v>.+)",
            _fact("origin", _place),
        ),
        (r"i was born in (?P<v>(?:19|20)\d\d)", _fact("birth.year")),
        (rf"i was born in (?!(?:{_MONTH})\b)(?P<v>\D+)", _fact("birth.place", _place)),
        (r"(?:my birthday(?:'s| is)|i was born) (?:on )?(?P<v>.+)", _fact("birthday", _date)),
        (rf"{_AM} (?P<v>\d{{1,3}})(?:[- ]years?[- ]old| y/?o)", _fact("age", _age)),
        (r"i (?:currently )?work as (?:an? |the )?(?P<v>.+)", _fact("job")),
        (r"my (?:job|profession|occupation) is (?:being )?(?:an? |the )?(?P<v>.+)", _fact("job")),
        (rf"{_AM} an? (?P<v>(?:[\w-]+ ){{0,3}}?(?:{_JOBS}))(?: by profession)?", _fact("job")),
        (r"i (?:currently )?work (?:at|for) (?P<v>.+)", _fact("employer")),
        (rf"(?:i study|{_AM} studying) (?!{_NO_SUBJECT})(?P<v>.+)", _fact("studies")),
        (rf"{_AM} (?:an? )?(?P<v>vegan|vegetarian|pescatarian)", _fact("diet")),
        (rf"{_AM} (?:{_HOW_MUCH} )?allergic to (?P<v>.+)", _allergy),
        (
            r"my (?:native|first) language is (?P<v>.+)|my mother tongue is (?P<w>.+)",
            _fact("language.native"),
        ),
        (r"i (?:also |can )?speak (?P<v>.+)", _speaks),
        (rf"my (?P<k>{_WHICH}(?:{_PETS})){_CALLED} (?P<v>.+)", _fact("pet.{k}.name", _name)),
        (rf"i have an? (?P<k>{_WHICH}(?:{_PETS})){_NAMED} (?P<v>.+)", _fact("pet.{k}.name", _name)),
        (rf"my (?P<k>{_WHICH}(?:{_KIN})){_CALLED} (?P<v>.+)", _fact("family.{k}.name", _name)),
        (
            rf"i have an? (?P<k>{_WHICH}(?:{_KIN})){_NAMED} (?P<v>.+)",
            _fact("family.{k}.name", _name),
        ),
        (
            r"my (?:all-time |absolute )?favou?rite (?P<k>[\w' -]{2,30}?) (?:is|are) (?P<v>.+)",
            _fact("favourite.{k}", kind="preference"),
        ),
        (rf"i {_VERY}(?P<verb>like|love|enjoy|hate|dislike|prefer) (?P<v>.+)", _taste),
        (rf"{_ASKING}(?P<verb>answer|reply|respond|talk|speak|write){_TO_ME} {_MANNER}", _reply),
        (
            rf"{_ASKING}(?P<verb>keep|make) (?P<v>(?:your |all |the )*(?:answers|replies) .+)",
            _reply,
        ),
        (rf"{_ASKING}(?P<verb>be) (?P<v>{_TRAIT})", _reply),
    )
)
