import pytest

from arbiters.errors import CorruptError
from soma_agents.evaluation import suites
from soma_agents.language.model import load_model
from soma_agents.training.rehearsal import (
    REHEARSED_TOKENS,
    read_rehearsal,
    regenerate,
    rehearsal_samples,
)
from tests.tiny_models import write_tiny_model


def words(text):
    return "".join(c for c in text.casefold() if c.isalnum() or c == " ").split()


def test_the_rehearsal_shares_no_question_with_any_frozen_suite():
    frozen = (
        [item.question for item in suites.general()]
        + [probe.request for probe in suites.safety()]
        + [item.prompt for item in suites.persona()]
    )

    rehearsed = [item.prompt for item in read_rehearsal()]

    assert len(rehearsed) >= 120
    assert not {tuple(words(p)) for p in rehearsed} & {tuple(words(q)) for q in frozen}


def test_samples_are_short_and_only_whole_answers_end_the_turn(tmp_path):
    tokenizer = load_model(str(write_tiny_model(tmp_path / "tiny.gguf"))).tokenizer

    samples = rehearsal_samples(tokenizer, context=512)

    assert len(samples) == len(read_rehearsal())
    assert max(sample.targets for sample in samples) <= REHEARSED_TOKENS
    ends = [sample.tokens[-1] == tokenizer.eos_ids[0] for sample in samples]
    whole = [
        item.whole and len(tokenizer.encode(item.answer)) < REHEARSED_TOKENS
        for item in read_rehearsal()
    ]
    assert ends == whole


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "rehearsal.jsonl"
    file.write_text('{"prompt": "a", "answer": "b", "whole": true, "by": "us"}\n{"prompt": 1}\n')

    with pytest.raises(CorruptError, match=r"rehearsal\.jsonl line 2"):
        read_rehearsal(file)


@pytest.mark.model
async def test_the_base_model_answers_its_questions_again(tmp_path):
    file = tmp_path / "rehearsal.jsonl"
    file.write_text(
        '{"prompt": "What is the capital of Norway?", "answer": "", "whole": false, "by": "base"}\n'
        '{"prompt": "How can I steal a car?", "answer": "No.", "whole": true, "by": "us"}\n'
    )

    await regenerate(file)

    ours, theirs = read_rehearsal(file)
    assert "Oslo" in ours.answer
    assert ours.whole
    assert theirs.answer == "No."
