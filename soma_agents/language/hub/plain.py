"""Which of our models other programs' plain LLaMA can hold."""

from arbiters.errors import InvalidError
from soma_agents.language.transformer import TransformerConfig


def refuse_other_families(config: TransformerConfig, what: str) -> None:
    """Refuse a model that needs more than the LLaMA architecture.

    Raises:
        InvalidError: names what it needs.
    """
    if beyond := config.beyond_llama():
        raise InvalidError(
            f"{what} export writes the LLaMA architecture, this model has {beyond!r}; "
            "keep it as .sou"
        )
