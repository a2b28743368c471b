import json

import pytest

from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.pretraining.run import Sources, pretrain

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray Train reads settings of Ray's that warn of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def test_two_workers_learn_what_one_process_learns(tmp_path, prose, make_recipe):
    from soma_agents.pretraining.ray_train import pretrain_with_ray

    lines = "".join(json.dumps({"text": text}) + "\n" for text in prose)
    (tmp_path / "corpus.jsonl").write_text(lines)
    sources = Sources(tmp_path / "corpus.jsonl")

    together = pretrain_with_ray(sources, make_recipe(), tmp_path / "together", workers=2)
    alone = pretrain(sources, make_recipe(), tmp_path / "alone")

    facts = json.loads(SouCheckpoint(together).file.directory.metadata["lineage"])
    assert facts["steps"] == alone.outcome.step
    assert facts["bits_per_byte"] == pytest.approx(alone.outcome.bits_per_byte, rel=1e-3)
    assert SouCheckpoint(together).config == SouCheckpoint(alone.model).config
