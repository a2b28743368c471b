from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "deploy" / "ray_cluster.yaml"


def test_ray_up_accepts_the_cluster_file():
    config = prepare_config(yaml.safe_load(FILE.read_text()))

    validate_config(config)
    nodes = config["available_node_types"]
    assert config["provider"]["type"] == "local"
    assert sum(node["max_workers"] for node in nodes.values()) >= 2


def test_every_ray_of_the_cluster_asks_for_the_token():
    config = yaml.safe_load(FILE.read_text())

    starts = [
        command
        for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        if "ray start" in command
    ]

    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
