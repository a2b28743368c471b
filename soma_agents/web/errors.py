"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from arbiters.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    SomaError,
    StorageFullError,
    UnavailableError,
)
from soma_agents.serving.rollout import ModelNotFoundError
from soma_agents.serving.specialist import ContextLengthError

log = structlog.get_logger(__name__)

RETRY_SECONDS = 2
"""Said when a part is away; Ray restarts an arbiter within seconds."""

# Error → HTTP status and OpenAI's `type`; the first match counts.
_STATUS: tuple[tuple[type[SomaError], int, str], ...] = (
    (BusyError, 429, "rate_limit_error"),
    (UnavailableError, 503, "service_unavailable"),
    (ForbiddenError, 403, "permission_error"),
    (InvalidError, 400, "invalid_request_error"),
    (NotFoundError, 404, "invalid_request_error"),
    (ConflictError, 409, "conflict_error"),
    (StorageFullError, 507, "insufficient_storage"),
    (SomaError, 500, "server_error"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 403: "insufficient_permissions", 413: "request_too_large"}


class ParameterError(InvalidError):
    """A request field has a value that is not accepted; `param` names it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


def body_of(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The error body that OpenAI's clients read."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: SomaError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """HTTP status, body and headers for an error."""
    status, kind = next((s, k) for cls, s, k in _STATUS if isinstance(error, cls))
    headers: dict[str, str] = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif isinstance(error, UnavailableError):
        headers["Retry-After"] = str(RETRY_SECONDS)
    param = getattr(error, "param", None)
    return status, body_of(str(error), kind=kind, param=param, code=_code(error)), headers


def _code(error: SomaError) -> str | None:
    match error:
        case ContextLengthError():
            return "context_length_exceeded"
        case ForbiddenError():
            return "insufficient_permissions"
        case ModelNotFoundError():
            return "model_not_found"
        case NotFoundError():
            return "not_found"
        case BusyError():
            return "rate_limit_exceeded"
        case StorageFullError():
            return "storage_full"
        case _:
            return None


def plain(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error response that did not begin as a `SomaError`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")  # noqa: PLR2004
    body = body_of(message, kind=kind, code=_CODES.get(status))
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Translate every error at the border."""
    app.add_exception_handler(SomaError, _soma)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _soma(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SomaError)  # noqa: S101 - registered for it
    status, body, headers = describe(error)
    return JSONResponse(body, status_code=status, headers=headers)


async def _validation(_: Request, error: Exception) -> JSONResponse:
    """400 for what can be parsed and is not accepted, 422 for the wrong type."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    found = error.errors()
    values = [one for one in found if not str(one["type"]).endswith(("_type", "_parsing"))]
    first = (values or found)[0]
    param = _param(first["loc"])
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    body = body_of(message, kind="invalid_request_error", param=param or None)
    return JSONResponse(body, status_code=400 if values else 422)


def _param(loc: Sequence[str | int]) -> str:
    """Where it is, without pydantic's names for the branches of a union."""
    parts = [str(part) for part in loc[1:]]
    return ".".join(part for part in parts if "[" not in part and part not in {"str", "float"})


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    message = str(error.detail)
    if error.status_code == 404:  # noqa: PLR2004
        message = f"there is no {request.method} {request.url.path}; see /docs"
    return plain(error.status_code, message, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Neither locals nor the error's words: they may hold what a person said.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("unexpected error", path=request.url.path, error=type(error).__name__, where=where)
    return plain(500, "something broke in SOMA; its log says more")
