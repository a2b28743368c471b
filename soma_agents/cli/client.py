"""The command line's way to a running SOMA: its own HTTP interface."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import typer

from arbiters.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SomaError,
    UnavailableError,
)
from soma_agents.cli.options import settings_of
from soma_agents.settings import Settings

PATIENCE_S = 120.0
_ERRORS = {403: ForbiddenError, 404: NotFoundError, 409: ConflictError, 503: UnavailableError}


class Daemon:
    """A running SOMA, found through its data directory; to be used in a `with` statement."""

    def __init__(self, settings: Settings) -> None:
        state = settings.home / "run" / "soma.json"
        if not state.exists():
            raise UnavailableError(
                f"SOMA is not running in {str(settings.home)!r}; start it with `soma up`"
            )
        self.state: dict[str, Any] = json.loads(state.read_text())
        self.url: str = self.state["url"]
        self._http = httpx2.Client(
            base_url=self.url, headers=_authorization(settings.home), timeout=PATIENCE_S
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """GET and decode; errors come as `SomaError`s with the server's words."""
        return self._call("GET", path, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: Any = None, *, seconds: float = PATIENCE_S) -> Any:
        """POST JSON and decode."""
        return self._call("POST", path, json={} if body is None else body, timeout=seconds)

    def delete(self, path: str) -> Any:
        """DELETE and decode."""
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise UnavailableError(
                f"SOMA does not answer at {self.url} ({error}); see `soma status`"
            ) from None
        if response.is_error:
            raise _ERRORS.get(response.status_code, SomaError)(_message(response))
        return response.json()

    def lines(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """GET a stream of JSON lines."""
        with self._http.stream("GET", path, params=query, timeout=None) as response:
            if response.is_error:
                response.read()
                raise SomaError(_message(response))
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)


def daemon_of(context: typer.Context, home: Path | None) -> Daemon:
    """The running SOMA of a command, let go of when the command ends."""
    return context.with_resource(Daemon(settings_of(context, home)))


def _authorization(home: Path) -> dict[str, str]:
    """The key of `SOMA_API_KEY`, else the token that only the owner of the data can read."""
    token = home / "run" / "cli_token"
    key = os.environ.get("SOMA_API_KEY") or (token.read_text().strip() if token.exists() else "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"
