import pytest
import torch

from soma_agents.language.architecture import TransformerConfig
from soma_agents.pretraining.recipe import Recipe


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_model():
    """Sizes of a small model; with one token a byte and three special ones, if nothing is said."""

    def make(**changes) -> TransformerConfig:
        sizes = {
            "vocab_size": 300,
            "layers": 2,
            "d_model": 32,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "d_ff": 48,
            "context": 512,
            "rope_theta": 10_000.0,
            "norm_eps": 1e-6,
            "tied_embeddings": True,
        }
        return TransformerConfig(**(sizes | changes))

    return make


@pytest.fixture(scope="session")
def make_recipe(make_model):
    """A run of seconds."""

    def make(**changes) -> Recipe:
        fields = {
            "name": "tiny",
            "model": make_model(),
            "row": 32,
            "batch_tokens": 128,
            "tokens": 128 * 12,
            "matrix_rate": 0.02,
            "embedding_rate": 0.01,
            "precision": "float32",
            "micro_rows": 2,
            "evaluations": 3,
        }
        return Recipe(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def prose() -> list[str]:
    """Documents with something to learn in them."""
    animals = ["fox", "crane", "otter", "badger", "heron", "adder", "vole"]
    places = ["in the reeds", "by the river", "on the hill", "under the bridge"]
    return [
        f"The {a} lives {p}. It looks for a {b} and sings to the {c} {q}.\n"
        for a in animals
        for b in animals
        for c, p, q in zip(animals, places * 2, reversed(places * 2), strict=False)
    ]
