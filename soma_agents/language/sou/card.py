"""What a model file says of how the model is to be used: the text form's content."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=65536)]
Short = Annotated[str, Field(min_length=1, max_length=400)]
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Parameters(BaseModel):
    """How replies are sampled unless a request says otherwise; None leaves it to the server."""

    model_config = STRICT

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[tuple[Short, ...], Field(max_length=16, strict=False)] = ()


class Rule(BaseModel):
    """Who may use the model; the first rule that fits decides, `*` is everybody."""

    model_config = STRICT

    effect: Literal["allow", "deny"]
    user: Short


class Card(BaseModel):
    """Parameters, voice, sources and users of a model."""

    model_config = STRICT

    system: Text = ""
    parameters: Parameters = Parameters()
    personality: dict[Short, Fraction] = Field(default_factory=dict)
    """Dimension of the personality → its set-point."""
    sources: Annotated[tuple[Short, ...], Field(max_length=256, strict=False)] = ()
    """Folders and files that answers may draw on."""
    rules: Annotated[tuple[Rule, ...], Field(max_length=1024, strict=False)] = ()

    def allows(self, user: str) -> bool:
        """Whether `user` may use the model: without rules everybody, else whom a rule lets in."""
        for rule in self.rules:
            if rule.user in {user, "*"}:
                return rule.effect == "allow"
        return not self.rules
