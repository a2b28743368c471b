import json
import os
import subprocess
import sys

import pytest
import ray

from soma_agents.language.sou.checkpoint import SouCheckpoint
from soma_agents.pretraining.run import MODEL, Sources, pretrain

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray Train reads settings of Ray's that warn of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


DRIVER = """
import json, sys
from pathlib import Path
import ray
from soma_agents.pretraining.ray_train import pretrain_with_ray
from soma_agents.pretraining.recipe import Recipe
from soma_agents.pretraining.run import Sources
ray.init(log_to_driver=False)
recipe = Recipe.of(json.loads(sys.argv[2]))
pretrain_with_ray(Sources(Path(sys.argv[1])), recipe, Path(sys.argv[3]), workers=2, sharded=True)
"""
"""A driver of its own: workers of a SOMA's own driver do without what Ray Train imports."""


def test_two_workers_that_part_the_model_learn_what_one_process_learns(
    tmp_path, prose, make_recipe
):
    """`test_sharding` has, without Ray, workers that do not part it."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in prose)
    (tmp_path / "corpus.jsonl").write_text(lines)
    sources = Sources(tmp_path / "corpus.jsonl")

    recipe = json.dumps(make_recipe().facts())
    subprocess.run(
        [sys.executable, "-c", DRIVER, sources.corpus, recipe, tmp_path / "together"],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        check=True,
    )
    together = tmp_path / "together" / MODEL
    alone = pretrain(sources, make_recipe(), tmp_path / "alone")

    facts = json.loads(SouCheckpoint(together).file.directory.metadata["lineage"])
    assert facts["steps"] == alone.outcome.step
    assert facts["bits_per_byte"] == pytest.approx(alone.outcome.bits_per_byte, rel=5e-3)
    assert SouCheckpoint(together).config == SouCheckpoint(alone.model).config
