from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbiters.errors import InvalidError
from soma_agents.language.sou.card import Card, Parameters, Rule
from soma_agents.language.sou.modelfile import TRAITS, Modelfile, parse, written

WHOLE = '''
# a poet
FROM ./small.sou
PARAMETER temperature 0.7
parameter stop "\\n"
PARAMETER stop END
PERSONALITY warmth 0.8
SYSTEM """
You answer in rhymes.
  Always.
"""
ADAPTER ./adapters/poet
RAG ./poems
ACL allow ann
ACL deny *
'''


def test_a_text_form_says_what_a_model_is_made_of():
    found = parse(WHOLE)

    assert found == Modelfile(
        base="./small.sou",
        adapter="./adapters/poet",
        card=Card(
            system="You answer in rhymes.\n  Always.",
            parameters=Parameters(temperature=0.7, stop=("\n", "END")),
            personality={"warmth": 0.8},
            sources=("./poems",),
            rules=(Rule(effect="allow", user="ann"), Rule(effect="deny", user="*")),
        ),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no FROM"),
        ("FORM x", r"Modelfile:1: FORM: unknown instruction 'FORM'; did you mean 'FROM'\?"),
        ("FROM x\nFROM y", r":2: FROM: there is a FROM already: 'x'"),
        ("FROM", r":1: FROM: nothing stands behind it"),
        ("FROM x\n\nPARAMETER temprature 1", r":3: .*'temprature'; did you mean 'temperature'\?"),
        ("FROM x\nPARAMETER temperature hot", r":2: PARAMETER: 'hot' is no number"),
        ("FROM x\nPARAMETER temperature -1", r":2: PARAMETER: temperature = -1: .*greater"),
        ("FROM x\nPARAMETER top_k 1.5", r":2: PARAMETER: top_k = 1.5"),
        ("FROM x\nPARAMETER temperature", r":2: PARAMETER: 'temperature' needs a value"),
        ("FROM x\nPARAMETER seed 1\nPARAMETER seed 1", r":3: PARAMETER: 'seed' was set before"),
        ("FROM x\nPERSONALITY warmth 2", r":2: PERSONALITY: warmth is '2'; use 0 to 1"),
        ("FROM x\nPERSONALITY warmth nan", r":2: PERSONALITY: warmth is 'nan'; use 0 to 1"),
        ("FROM x\nPERSONALITY heat 1", r":2: PERSONALITY: unknown trait 'heat'"),
        ('FROM x\nSYSTEM """a\nb', r':2: SYSTEM: no """ ends the text'),
        ('FROM x\nSYSTEM """a""" b', r":2: SYSTEM: 'b' stands behind"),
        ('FROM x\nSYSTEM "a', r":2: SYSTEM: '\"a' is no JSON string"),
        ("FROM x\nACL permit ann", r":2: ACL: unknown effect 'permit'"),
    ],
)
def test_a_mistake_is_named_with_its_line(text, said):
    with pytest.raises(InvalidError, match=said):
        parse(text)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


CARDS = st.builds(
    Card,
    system=TEXT | st.just(""),
    parameters=st.builds(
        Parameters,
        stop=st.lists(TEXT, max_size=3).map(tuple),
        temperature=st.none() | st.floats(0, 100),
    ),
    personality=st.dictionaries(st.sampled_from(TRAITS), st.floats(0, 1)),
    sources=st.lists(TEXT, max_size=3).map(tuple),
    rules=st.lists(
        st.builds(Rule, effect=st.sampled_from(["allow", "deny"]), user=TEXT), max_size=3
    ).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(base=TEXT, adapter=TEXT | st.just(""), card=CARDS)
def test_what_is_written_is_read_back(base, adapter, card):
    assert parse(written(Modelfile(base, adapter, card))) == Modelfile(base, adapter, card)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60).map(lambda text: f"FROM x\n{text}"))
def test_any_text_is_read_or_refused_as_ours(text):
    with suppress(InvalidError):
        assert parse(text).base == "x"


def test_the_first_rule_that_fits_decides_who_may_use_it():
    card = parse("FROM x\nACL deny bob\nACL allow *\n").card

    assert card.allows("ann")
    assert not card.allows("bob")
    assert Card().allows("bob")
    assert not parse("FROM x\nACL allow ann").card.allows("bob")
