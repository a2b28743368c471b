from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.routing import (
    Canary,
    Route,
    RoutingFacts,
    UnknownModel,
    bucket,
    name_problem,
    route,
)

FACTS = RoutingFacts(
    user="owner",
    conversation="c1",
    champion="id-1",
    models={"soma-v0": "id-0", "soma-v1": "id-1", "soma-v2": "id-2"},
)
CANARY = Canary(experiment="exp-1", candidate="id-2", share=0.25)


@pytest.mark.parametrize("requested", [None, "", "soma", "default"])
def test_the_champion_answers_unless_somebody_else_is_asked_for(requested):
    assert route(replace(FACTS, requested=requested)) == Route(
        "personal", "id-1", None, "the champion answers"
    )


@pytest.mark.parametrize("requested", ["soma-v0", "id-0"])
def test_a_model_asked_for_by_name_or_id_answers_even_during_a_canary(requested):
    decision = route(replace(FACTS, requested=requested, canary=CANARY))

    assert decision.model == "id-0"
    assert decision.experiment is None


def test_an_unknown_model_is_refused_with_the_names_there_are():
    decision = route(replace(FACTS, requested="gpt-4"))

    assert decision == UnknownModel(
        "there is no model 'gpt-4'; there are soma, soma-v0, soma-v1, soma-v2"
    )


def test_a_canary_gives_the_candidate_its_share_of_the_conversations():
    decisions = [route(replace(FACTS, conversation=f"c{i}", canary=CANARY)) for i in range(2000)]

    candidates = [d for d in decisions if d.model == "id-2"]
    assert 0.2 < len(candidates) / 2000 < 0.3
    assert {d.model for d in decisions} == {"id-1", "id-2"}
    assert {d.experiment for d in decisions} == {"exp-1"}


@given(st.text(), st.text())
def test_a_conversation_stays_with_its_arm(user, conversation):
    facts = replace(FACTS, user=user, conversation=conversation, canary=CANARY)

    assert route(facts) == route(facts)
    assert 0 <= bucket(user, conversation, "exp-1") < 1


def test_the_next_experiment_draws_anew():
    drawn = {bucket("owner", "c1", f"exp-{i}") for i in range(20)}

    assert len(drawn) == 20


def test_a_specialist_asked_for_by_name_answers_even_during_a_canary():
    facts = replace(FACTS, specialists={"poet": "base-2"}, canary=CANARY)

    assert route(replace(facts, requested="poet")) == Route(
        "poet", "base-2", None, "specialist 'poet' was asked for by name"
    )
    assert "poet, soma" in route(replace(facts, requested="cook")).because


@pytest.mark.parametrize("name", ["poet", "a", "night-cook-2", "somatic", "z" * 40])
def test_a_name_that_can_be_said_is_no_problem(name):
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "soma",
        "default",
        "personal",
        "soma-v3",
        "soma-embed",
        "soma-poet",
        "Poet",
        "2nd",
        "a b",
        "z" * 41,
        "poet\n",
    ],
)
def test_a_name_that_is_somas_own_or_no_name_is_a_problem(name):
    assert name_problem(name) is not None
