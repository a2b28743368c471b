import random

import pytest

from soma_agents.language.geometry.train import Plan, train

ANIMALS = ["cat", "dog", "horse", "cow", "sheep", "goat"]
FOOD = ["milk", "grass", "hay", "meat", "corn", "water"]
STARS = ["star", "planet", "comet", "moon", "galaxy", "orbit"]
SKY = ["telescope", "night", "light", "gravity", "sky", "space"]


@pytest.fixture(scope="session")
def documents():
    """Sentences about animals and sentences about the sky, which share no word but the small ones."""
    draw = random.Random(1)

    def sentence(who, what):
        return f"The {draw.choice(who)} and a {draw.choice(who)} like the {draw.choice(what)}."

    return [
        "\n".join(sentence(*draw.choice([(ANIMALS, FOOD), (STARS, SKY)])) for _ in range(4))
        for _ in range(400)
    ]


@pytest.fixture(scope="session")
def embedders(documents):
    """One of each method."""
    return {
        method: train(documents, Plan(method, dim=None if method == "feature" else 32))
        for method in ("feature", "hash", "semantic", "hybrid")
    }
