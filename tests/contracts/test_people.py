import pytest

from arbiters.errors import ConflictError
from arbiters.records import NOTES_KEPT, PersonalityRevision, StoredFact

ME = ("local", "owner")
EVE = ("local", "eve")


def fact(name, at, subject="name", value="Ada", kind="fact"):
    return StoredFact(
        id=name, subject=subject, value=value, kind=kind, quote="I am", message="m", at=at
    )


def revision(number, at, warmth=0.5):
    return PersonalityRevision(number, {"warmth": warmth, "humour": 0.25}, number * 10, "talk", at)


async def test_a_new_value_replaces_the_old_which_becomes_history(profiles, at):
    old, new = fact("f1", at(0), value="Ada"), fact("f2", at(1), value="Ada L.")
    await profiles.put(*ME, old)
    await profiles.put(*ME, new)

    assert await profiles.facts(*ME) == [new]
    assert await profiles.history(*ME, "name") == [old, new]


async def test_facts_are_listed_by_subject(profiles, at):
    for number, subject in enumerate(["pet.name", "home", "name"]):
        await profiles.put(*ME, fact(f"f{number}", at(number), subject=subject))

    assert [f.subject for f in await profiles.facts(*ME)] == ["home", "name", "pet.name"]


async def test_a_fact_put_twice_is_there_once(profiles, at):
    await profiles.put(*ME, fact("f1", at(0)))
    await profiles.put(*ME, fact("f2", at(1), value="Grace"))

    await profiles.put(*ME, fact("f1", at(0)))

    assert [f.id for f in await profiles.history(*ME, "name")] == ["f1", "f2"]
    assert [f.value for f in await profiles.facts(*ME)] == ["Grace"]


async def test_forgetting_removes_a_subject_with_its_history(profiles, at):
    await profiles.put(*ME, fact("f1", at(0)))
    await profiles.put(*ME, fact("f2", at(1), value="Grace"))
    await profiles.put(*ME, fact("f3", at(2), subject="home", kind="preference"))
    await profiles.put(*EVE, fact("f1", at(0)))

    assert await profiles.forget(*ME, "name")

    assert not await profiles.forget(*ME, "name")
    assert await profiles.history(*ME, "name") == []
    assert [f.subject for f in await profiles.facts(*ME)] == ["home"]
    assert len(await profiles.facts(*EVE)) == 1


async def test_the_newest_revision_is_the_personality(personalities, at):
    assert await personalities.current(*ME) is None
    await personalities.add(*ME, revision(1, at(0)))
    await personalities.add(*ME, revision(2, at(1), warmth=0.7))

    assert await personalities.current(*ME) == revision(2, at(1), warmth=0.7)
    assert [r.revision for r in await personalities.history(*ME)] == [2, 1]
    assert [r.revision for r in await personalities.history(*ME, limit=1)] == [2]
    assert await personalities.current(*EVE) is None


async def test_a_revision_is_never_overwritten(personalities, at):
    await personalities.add(*ME, revision(1, at(0)))

    with pytest.raises(ConflictError, match="revision 1 already"):
        await personalities.add(*ME, revision(1, at(1), warmth=0.9))

    assert await personalities.current(*ME) == revision(1, at(0))


async def test_a_note_replaces_the_one_of_its_name(personalities):
    await personalities.note(*ME, "talk", {"words": 3.0})
    await personalities.note(*ME, "talk", {"words": 5.0})

    assert await personalities.noted(*ME, "talk") == {"words": 5.0}
    assert await personalities.noted(*ME, "other") is None
    assert await personalities.noted(*EVE, "talk") is None


async def test_only_the_names_noted_last_are_kept(personalities):
    await personalities.note(*EVE, "hers", {"n": 0.0})
    for number in range(NOTES_KEPT):
        await personalities.note(*ME, f"talk {number}", {"n": float(number)})
    await personalities.note(*ME, "talk 0", {"n": 0.5})

    await personalities.note(*ME, "one more", {"n": 1.0})

    assert await personalities.noted(*ME, "talk 1") is None
    assert await personalities.noted(*ME, "talk 0") == {"n": 0.5}
    assert await personalities.noted(*ME, "talk 2") == {"n": 2.0}
    assert await personalities.noted(*EVE, "hers") == {"n": 0.0}
