import pytest

from soma_agents.language.symbols.bpe import Bpe
from tests.language.symbols.samples import SAMPLE


@pytest.fixture(scope="session")
def bpe():
    return Bpe.train([SAMPLE * 3], 400, special=("<|end|>",))
