import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.memory.questions import PHRASINGS, questions_about, subject_words
from policies.memory.statements import MAX_VALUE_CHARACTERS, facts_stated


def stated(text, **rest):
    return {one.subject: one.value for one in facts_stated(text, **rest)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Mira and I live in Lyon.", {"name": "Mira", "home": "Lyon"}),
        ("my name is mira", {"name": "Mira"}),
        ("My name is Ludwig van Dam", {"name": "Ludwig van Dam"}),
        ("Please call me Max.", {"name.preferred": "Max"}),
        ("I prefer to be called Max", {"name.preferred": "Max"}),
        (
            "Hi! I'm from St. Gallen, Switzerland, and I work as a nurse.",
            {"origin": "St. Gallen, Switzerland", "job": "nurse"},
        ),
        ("I live in Lyon, France with my wife", {"home": "Lyon, France"}),
        ("I live in Lyon, which is lovely", {"home": "Lyon"}),
        ("I moved to Berlin last year.", {"home": "Berlin"}),
        ("I'm a software engineer", {"job": "software engineer"}),
        ("I work for a small bank in Zürich", {"employer": "a small bank in Zürich"}),
        ("I study physics", {"studies": "physics"}),
        ("I am vegan", {"diet": "vegan"}),
        ("I was born in 1990", {"birth.year": "1990"}),
        ("I was born in Rome", {"birth.place": "Rome"}),
        ("My birthday is on May 4.", {"birthday": "May 4"}),
        ("I'm 34 years old", {"age": "34"}),
        (
            "My dog is called Rex; my older daughter's name is Anna",
            {"pet.dog.name": "Rex", "family.older_daughter.name": "Anna"},
        ),
        ("I have a cat named Tom", {"pet.cat.name": "Tom"}),
        ("I have a son called Ben", {"family.son.name": "Ben"}),
        ("My favourite colour is dark green", {"favourite.colour": "dark green"}),
        (
            "I really like jazz, tea and chess.",
            {"taste.jazz": "like jazz", "taste.tea": "like tea", "taste.chess": "like chess"},
        ),
        (
            "I like long walks, when the sun shines",
            {"taste.long_walks": "like long walks"},
        ),
        ("I prefer tea to coffee", {"taste.tea": "prefer tea to coffee"}),
        ("I hate waiting because it is dull", {"taste.waiting": "hate waiting"}),
        ("I'm allergic to nuts and eggs", {"allergy.nuts": "nuts", "allergy.eggs": "eggs"}),
        (
            "I speak French and a little German",
            {"language.french": "French", "language.german": "German"},
        ),
        ("My mother tongue is Finnish", {"language.native": "Finnish"}),
        ("Please answer in German.", {"reply.language": "German"}),
        ("Please answer in bullet points.", {"reply.style": "answer in bullet points"}),
        ("Please keep your answers short.", {"reply.length": "keep your answers short"}),
        ("Always be concise", {"reply.length": "be concise"}),
        (
            "From now on, answer in one sentence. What is the capital of France?",
            {"reply.length": "answer in one sentence"},
        ),
        ('My dog is called "Rex"', {"pet.dog.name": "Rex"}),
        ("I\u2019m from Oslo", {"origin": "Oslo"}),
        ("By the way, I live in Oslo. Write me a poem.", {"home": "Oslo"}),
    ],
)
def test_a_plain_first_person_statement_is_a_fact(text, expected):
    assert stated(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "…",
        "Do I live in Lyon?",
        "Do you know that I'm from Rome?",
        "I don't like jazz",
        "I'm not from Rome",
        "My name is not Bob",
        "I used to live in Rome",
        "If I live in Paris, I like museums",
        "Suppose my name is Bob",
        "I wish I lived in Rome",
        "I would like a coffee",
        "Maybe I like tea",
        "My brother says, I like tea",
        "My friend lives in Rome",
        "She lives in Rome and likes tea",
        'She said "my name is Rosa and I live in Rome"',
        "> My name is Rosa",
        "```\nMy name is Rosa\n```",
        "Translate to French: My name is Rosa.",
        "Translate into French:\nMy name is Rosa.",
        "My name is Rosa. Rewrite the above.",
        "Pretend you are a pirate. My name is Jack.",
        "Please answer in one word. What is the capital of France?",
        "Please answer in the way that your old grandmother did it in her time",
        "I like it",
        "I like your answer",
        "I love you",
        "I like the second one",
        "My name is important to me",
        "You can call me later",
        "I work at night",
        "I live in fear",
        "I'm a bit tired",
        "I'm 400 years old",
        "My birthday is tomorrow",
        "I study for an exam",
        "I speak too fast",
        "I'm allergic to it",
        "My favourite colour is " + "very " * 10 + "green",
        "My name is " + "A" * (MAX_VALUE_CHARACTERS + 1),
        "I was born in May",
        "I like -- ,",
        "My mother tongue is what it is",
    ],
)
def test_what_is_no_plain_statement_is_no_fact(text):
    assert facts_stated(text) == []


@pytest.mark.parametrize("trust", ["imported", "self", "external"])
def test_only_the_owners_own_words_state_facts(trust):
    assert stated("My name is Mira", trust=trust) == {}


def test_a_statement_bears_its_kind_and_its_sentence():
    name, taste = facts_stated("Hello! My name is Mira. I like tea.")

    assert (name.kind, name.quote) == ("fact", "My name is Mira.")
    assert (taste.kind, taste.quote) == ("preference", "I like tea.")


def test_the_last_of_two_statements_about_one_subject_counts():
    assert stated("I live in Rome. I like tea. I live in Oslo.") == {
        "taste.tea": "like tea",
        "home": "Oslo",
    }


@given(st.text(max_size=400))
def test_any_text_is_read_without_trouble(text):
    for one in facts_stated(text):
        assert 0 < len(one.value) <= MAX_VALUE_CHARACTERS
        assert one.subject


def test_long_pasted_text_is_read_in_good_time():
    assert facts_stated("\u201c" * 1_000_000) == []
    assert facts_stated("hi " * 300_000) == []


# --- questions -----------------------------------------------------------------------------

SUBJECTS = [
    ("name", "Mira", "fact"),
    ("name.preferred", "Max", "preference"),
    ("home", "Lyon", "fact"),
    ("origin", "Oslo", "fact"),
    ("birthday", "May 4", "fact"),
    ("birth.year", "1990", "fact"),
    ("birth.place", "Rome", "fact"),
    ("age", "34", "fact"),
    ("job", "nurse", "fact"),
    ("employer", "a bank", "fact"),
    ("studies", "physics", "fact"),
    ("diet", "vegan", "fact"),
    ("allergy.nuts", "nuts", "fact"),
    ("language.french", "French", "fact"),
    ("language.native", "Finnish", "fact"),
    ("pet.dog.name", "Rex", "fact"),
    ("pet.name", "Rex", "fact"),
    ("family.older_daughter.name", "Anna", "fact"),
    ("favourite.colour", "green", "preference"),
    ("taste.tea", "prefer tea to coffee", "preference"),
    ("reply.language", "German", "preference"),
    ("reply.length", "keep your answers short", "preference"),
    ("reply.style", "answer in bullet points", "preference"),
    ("shoe_size", "42", "fact"),
    ("editor.theme", "dark", "preference"),
]


@pytest.mark.parametrize(("subject", "value", "kind"), SUBJECTS)
def test_every_fact_is_asked_for_in_many_ways(subject, value, kind):
    pairs = questions_about(subject, value, kind)

    assert len({question for question, _ in pairs}) == len(pairs) >= PHRASINGS
    assert pairs == questions_about(subject, value, kind)
    for question, answer in pairs:
        assert question[-1] in "?."
        assert answer.endswith(".")
        assert "  " not in question + answer
        assert "{" not in question + answer


@pytest.mark.parametrize(
    ("subject", "value", "kind", "question", "answer"),
    [
        ("name", "Mira", "fact", "What is my name?", "Your name is Mira."),
        ("job", "engineer", "fact", "What is my job?", "You are an engineer."),
        ("job", "the boss", "fact", "What is my job?", "You are the boss."),
        ("pet.dog.name", "Rex", "fact", "What is my dog called?", "Your dog is called Rex."),
        (
            "taste.dog",
            "love my dog",
            "preference",
            "How do I feel about my dog?",
            "You love your dog.",
        ),
        (
            "taste.town",
            "love the town I grew up in",
            "preference",
            "How do I feel about the town I grew up in?",
            "You love the town you grew up in.",
        ),
        (
            "favourite.books",
            "Emma and Dune",
            "preference",
            "What are my favourite books?",
            "Your favourite books are Emma and Dune.",
        ),
        (
            "reply.length",
            "keep your answers short",
            "preference",
            "How long should your answers be?",
            "You asked me to keep my answers short.",
        ),
        ("car.tyre.name", "Bob", "fact", "What is my tyre's name?", "Your tyre's name is Bob."),
    ],
)
def test_answers_are_in_the_second_person(subject, value, kind, question, answer):
    assert (question, answer) in questions_about(subject, value, kind)


def test_a_subject_is_said_in_words():
    assert subject_words("pet.dog.name") == "dog's name"
    assert subject_words("shoe_size") == "shoe size"
