import asyncio
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from arbiters.model_events import ComparisonFailed, ComparisonFinished, ComparisonRequested
from policies.evaluation import SUITES
from policies.personality import DIMENSIONS
from soma_agents.evaluation import compare as comparing
from soma_agents.evaluation.compare import compare
from soma_agents.evaluation.examiner import LocalExaminer
from soma_agents.evaluation.request import Comparison
from soma_agents.language import precision
from soma_agents.language.lora import LoraAdapter, LoraConfig, adapter_id
from soma_agents.language.model import load_model
from soma_agents.storage.files import write_manifest
from tests.tiny_models import echoes, example, tiny_base, tiny_settings, write_dataset


@pytest.fixture
def settings(tmp_path):
    return tiny_settings(tmp_path, evaluation={"max_items": 8})


def install(settings, *, spoil=None):
    """An adapter in the home, as the trainer stores it; `spoil` may change its file first."""
    models = settings.home / "models"
    config = load_model(settings.engine.model).config
    LoraAdapter.create(LoraConfig(rank=4, alpha=8), config, seed=3).save(
        models / "new", tiny_base(settings)
    )
    if spoil is not None:
        spoil(models / "new" / "adapter_model.safetensors")
    name = adapter_id(models / "new", tiny_base(settings))
    write_manifest(models / "new", {})
    return (models / "new").rename(models / name)


async def request_of(settings, candidate):
    pairs = [example(f"p{n}", "tea?", "yes", rejected="no way") for n in range(2)]
    dataset = await write_dataset(settings, heldout=[*echoes("heldout", 12), *pairs])
    return ComparisonRequested(
        round="round-1",
        experiment="experiment-1",
        champion=tiny_base(settings),
        candidate=candidate,
        dataset_path=dataset.path,
        rules={},
    )


def answer(settings, request):
    return compare(Comparison(request=request, settings=settings, cores=(0,)))


def failure(settings, request):
    failed = answer(settings, request).failed
    assert isinstance(failed, ComparisonFailed)
    assert failed.candidate == request.candidate
    return failed.because


async def test_every_suite_is_measured_on_both_models(settings):
    candidate = install(settings).name

    finished = await LocalExaminer(settings).compare(await request_of(settings, candidate))

    assert isinstance(finished, ComparisonFinished), finished
    counts = dict.fromkeys(SUITES, 0)
    for seen in finished.observations:
        counts[seen.suite] += 1
    assert counts["target"] == 8  # max_items
    assert counts["preference"] == 2
    assert counts["forgetting"] >= 80
    assert counts["safety"] >= 24
    assert counts["personality"] == len(DIMENSIONS)
    assert counts["latency"] >= 8
    assert counts["triggers"] >= 3
    # A fresh adapter changes nothing, and nothing is what is seen.
    for seen in finished.observations:
        if seen.suite != "latency":
            assert seen.candidate == pytest.approx(seen.champion, abs=1e-6)
    assert all(seen.candidate > 0 for seen in finished.observations if seen.suite == "latency")
    assert len(finished.samples) == 8
    assert set(finished.samples[0]) == {"prompt", "champion", "candidate", "reference"}


@pytest.mark.parametrize(("instructions", "judged"), [("AMX", "bfloat16"), ("", "float32")])
async def test_texts_are_judged_in_the_fastest_format_and_words_said_as_in_service(
    instructions, judged, tmp_path, monkeypatch
):
    settings = tiny_settings(tmp_path, engine={"dtype": "bfloat16"}, evaluation={"max_items": 8})
    request = await request_of(settings, install(settings).name)
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: instructions)
    seen = {}
    for name, real in {"Replay": comparing.Replay, "trial": comparing.trial}.items():

        def heard(model, *arms, name=name, real=real, **how):
            seen[name] = str(model.transformer.head.weight.dtype)
            return real(model, *arms, **how)

        monkeypatch.setattr(comparing, name, heard)

    finished = await asyncio.to_thread(answer, settings, request)

    assert finished.finished is not None
    assert seen == {"Replay": f"torch.{judged}", "trial": "torch.bfloat16"}


async def test_a_candidate_with_nan_weights_is_refused(settings):
    def spoil(path):
        tensors = load_file(path)
        tensors[min(tensors)][0, 0] = torch.nan
        save_file(tensors, path, {"format": "pt"})

    request = await request_of(settings, install(settings, spoil=spoil).name)

    assert "NaN or infinity" in failure(settings, request)


async def test_a_candidate_whose_file_was_changed_is_refused(settings):
    directory = install(settings)
    path = directory / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    assert "is damaged" in failure(settings, await request_of(settings, directory.name))


async def test_a_candidate_under_another_name_is_refused(settings):
    directory = install(settings)
    renamed = directory.rename(directory.with_name("lora-0000000000000000"))

    assert "its name says" in failure(settings, await request_of(settings, renamed.name))


async def test_a_candidate_that_is_not_there_is_refused(settings):
    request = await request_of(settings, "lora-missing")

    assert "'lora-missing' is not in" in failure(settings, request)


async def test_a_dataset_that_was_changed_is_refused(settings):
    request = await request_of(settings, install(settings).name)
    manifest = settings.home / "datasets" / request.dataset_path.rsplit("/", 1)[-1]
    facts = json.loads((manifest / "manifest.json").read_text())
    facts["id"] = "0" * 16
    (manifest / "manifest.json").write_text(json.dumps(facts))

    assert "is not what was written" in failure(settings, request)
