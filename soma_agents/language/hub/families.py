"""Which table maps a `config.json` and its tensors into our architecture.

Sources: the `transformers` library's `models/<type>/modeling_<type>.py`. A family is a function
from `config.json` to our configuration and a table from our tensor names to theirs; what is laid
out otherwise there (transposed, interleaved, off by one) is straightened by a function.
"""

from collections.abc import Callable

from arbiters.errors import InvalidError
from soma_agents.language.hub.gpt_like import GPT2, GPT_J, GPT_NEOX
from soma_agents.language.hub.llama_like import LLAMA, MISTRAL, QWEN2, QWEN3, gemma3, mixtral
from soma_agents.language.hub.table import Family, Json

FAMILIES: dict[str, Callable[[Json], Family]] = {
    "llama": lambda _: LLAMA,
    "mistral": lambda _: MISTRAL,
    "qwen2": lambda _: QWEN2,
    "qwen3": lambda _: QWEN3,
    "gemma3_text": gemma3,
    "mixtral": mixtral,
    "gpt2": lambda _: GPT2,
    "gpt_neox": lambda _: GPT_NEOX,
    "gptj": lambda _: GPT_J,
}


def family_of(json: Json) -> Family:
    """The family that `config.json` names.

    Raises:
        InvalidError: no table knows it.
    """
    name = json.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise InvalidError(f"model_type is {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name](json)
