import pytest

from arbiters.events import FactForgotten, FactStated, MessageReceived
from arbiters.testing import MemoryProfileStore, react
from arbiters.user_profile import UserProfile

WHO = {"tenant": "local", "user": "owner"}


@pytest.fixture
def profile():
    return UserProfile(store=MemoryProfileStore())


def asked(content, message="m1", **rest):
    return MessageReceived(conversation="c1", message=message, content=content, **rest)


async def tell(profile, content, message="m1"):
    """What the arbiter says about a message, and hears in turn."""
    said = await react(profile, asked(content, message))
    for event in said:
        assert await react(profile, event) == []
    return said


async def test_a_stated_fact_is_said_with_where_it_was_stated(profile):
    (said,) = await react(profile, asked("My name is Mira."))

    assert said == FactStated(
        fact="m1/name",
        message="m1",
        subject="name",
        value="Mira",
        kind="fact",
        quote="My name is Mira.",
    )


async def test_small_talk_states_nothing(profile):
    assert await react(profile, asked("How are you?")) == []


@pytest.mark.parametrize("trust", ["imported", "self", "external"])
async def test_other_peoples_words_state_nothing(profile, trust):
    assert await react(profile, asked("My name is Mira.", trust=trust)) == []


async def test_what_is_known_is_not_said_again(profile):
    await tell(profile, "My name is Mira.")

    assert await tell(profile, "My name is Mira. I live in Oslo.", "m2") != []
    assert await tell(profile, "My name is Mira. I live in Oslo.", "m3") == []


async def test_a_new_value_replaces_the_old_one_which_stays_in_the_history(profile):
    await tell(profile, "I live in Rome.", "m1")
    await tell(profile, "I live in Oslo.", "m2")

    (fact,) = await profile.profile(**WHO)
    assert (fact.value, fact.message) == ("Oslo", "m2")
    history = await profile.history(**WHO, subject="home")
    assert [fact.value for fact in history] == ["Rome", "Oslo"]


async def test_a_fact_taken_back_is_gone_with_its_history(profile):
    await tell(profile, "I live in Rome.")

    await react(profile, FactForgotten(subject="home"))

    assert await profile.profile(**WHO) == []
    assert await profile.history(**WHO, subject="home") == []


async def test_people_are_told_apart(profile):
    stated = FactStated(fact="1", message="", subject="name", value="Ben", kind="fact", quote="Ben")

    await react(profile, stated, user="ben")

    assert await profile.profile(**WHO) == []
    assert (await profile.profile("local", "ben"))[0].value == "Ben"
