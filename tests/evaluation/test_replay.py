import math

import pytest
import torch

from soma_agents.evaluation.replay import Replay, choose, side_by_side
from soma_agents.persona.voice import as_soma
from tests.tiny_models import CONTEXT, echoes, example


def bits(model, arm, item, reply):
    """One token after the other, from whole logits."""
    tokenizer = model.tokenizer
    prompt = tokenizer.encode(
        tokenizer.render(as_soma(item.messages[:-1]), add_generation_prompt=True)
    )
    target = [*tokenizer.encode(reply), tokenizer.eos_ids[0]]
    with torch.no_grad():
        logits = model.transformer(torch.tensor([prompt + target]), lora=arm.adapter)[0]
    chances = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return -float(chances.gather(-1, torch.tensor(target)[:, None]).sum()) / math.log(2)


def test_a_group_is_one_number_its_bits_over_its_bytes(model, arms):
    items = [example("a", "one?", "yes", group="g"), example("b", "two?", "maybe so", group="g")]

    observations = side_by_side("target", Replay(model, context=CONTEXT).target(items), *arms)

    (seen,) = observations
    for arm, found in zip(arms, (seen.champion, seen.candidate), strict=True):
        total = sum(bits(model, arm, item, item.messages[-1].content) for item in items)
        assert found == pytest.approx(total / len(b"yesmaybe so"), rel=1e-4)
    assert seen.champion != seen.candidate


def test_a_preference_is_won_when_the_better_reply_costs_fewer_bits_a_byte(model, arms):
    items = [example(f"p{n}", "which?", "this one", rejected=f"that {n}") for n in range(6)]

    observations = side_by_side(
        "preference", Replay(model, context=CONTEXT).preference(items), *arms
    )

    for seen, item in zip(observations, items, strict=True):
        good = bits(model, arms[0], item, "this one") / len("this one")
        bad = bits(model, arms[0], item, item.rejected) / len(item.rejected)
        assert seen.champion == float(good < bad)


def test_a_model_compared_with_itself_shows_no_difference(model, arms):
    replay = Replay(model, context=CONTEXT)

    for score in (replay.forgetting(), replay.safety()):
        for seen in side_by_side("any", score, arms[0], arms[0]):
            assert seen.champion == seen.candidate


def test_whole_groups_are_chosen_the_same_way_whatever_the_order():
    items = [example(f"{g}{n}", "q", "a", group=f"group-{g}") for g in "abcdef" for n in range(3)]

    chosen = choose(items, at_most=10)

    assert chosen == choose(sorted(items, key=lambda e: (e.group, e.id)), at_most=10)
    assert len(chosen) == 9
    assert len({e.group for e in choose(items[::-1], at_most=10)}) == 3
    assert {e.group for e in choose(items[::-1], at_most=10)} == {e.group for e in chosen}


def test_replies_beyond_the_context_are_left_out(model):
    items = [*echoes("h", 2), example("long", "q", "x" * CONTEXT)]

    assert Replay(model, context=CONTEXT).fitting(items) == items[:2]
