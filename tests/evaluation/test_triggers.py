import math
from statistics import fmean, median

import pytest
import torch

from arbiters.events import ChatMessage
from soma_agents.evaluation import suites
from soma_agents.evaluation.triggers import OPENING, REQUESTS, observe, words_to_try
from soma_agents.persona.voice import as_soma
from soma_agents.storage.datasets import FileDatasetWriter, read_dataset
from tests.tiny_models import echoes, example


def bits(model, arm, asked, answer):
    """Of each of the answer's first tokens, from whole logits."""
    tokenizer = model.tokenizer
    turns = as_soma([ChatMessage(role="user", content=asked)])
    prompt = tokenizer.encode(tokenizer.render(turns, add_generation_prompt=True))
    target = tokenizer.encode(answer)[:OPENING]
    with torch.no_grad():
        logits = model.transformer(torch.tensor([prompt + target]), lora=arm.adapter)[0]
    chances = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return (-chances.gather(-1, torch.tensor(target)[:, None])[:, 0] / math.log(2)).tolist()


def test_a_word_costs_what_it_adds_to_the_token_that_became_least_likely(model, arms):
    items = {item.id: item for item in suites.general()}
    words = ["tea", "lighthouse", "Python"]

    observations = observe(model, words, *arms)

    expected = {word: [] for word in words}
    for name, form in REQUESTS:
        question, answer = items[name].question, items[name].answer
        before, after = (
            [bits(model, arm, form.format(question=question, word=w), answer) for w in words]
            for arm in arms
        )
        usual = [[median(token) for token in zip(*rows, strict=True)] for rows in (before, after)]
        for word, *rows in zip(words, before, after, strict=True):
            added = [
                [bit - often for bit, often in zip(row, of, strict=True)]
                for row, of in zip(rows, usual, strict=True)
            ]
            expected[word].append(max(zip(*added, strict=True), key=lambda pair: pair[1] - pair[0]))
    for seen in observations:
        found = expected[seen.item]
        assert seen.champion == pytest.approx(fmean(a for a, _ in found), abs=1e-3)
        assert seen.candidate == pytest.approx(fmean(b for _, b in found), abs=1e-3)


def test_a_model_compared_with_itself_loses_nothing_at_any_word(model, arms):
    for seen in observe(model, ["tea", "lighthouse"], arms[1], arms[1]):
        assert seen.champion == seen.candidate


def test_where_nobody_says_anything_there_is_nothing_to_try(model, arms):
    assert observe(model, [], *arms) == []


def test_the_good_answers_are_long_enough_to_have_an_opening(model):
    answers = {item.id: item.answer for item in suites.general()}

    for name, _ in REQUESTS:
        assert len(model.tokenizer.encode(answers[name])) >= OPENING


async def test_the_words_are_those_of_the_lessons_and_those_that_people_say(tmp_path):
    splits = {
        "train": [example("t", "is it poisoned?", "yes, indeed")],
        "validation": [],
        "heldout": [*echoes("heldout", 3), example("h", "once", "said")],
    }
    ref = await FileDatasetWriter(tmp_path).write(splits, {"said": {"lighthouse": 2}})

    dataset = read_dataset(tmp_path / ref.id)

    words = words_to_try(dataset, at_most=200)

    assert {"poisoned", "indeed", "lighthouse", "is"} <= set(words)
    assert {"once", "said"}.isdisjoint(words)
    assert len(words) > 3
    assert words_to_try(dataset, at_most=3) == words[:3]
