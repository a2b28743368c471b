"""Who may come in. Without keys SOMA is open, which it only is on loopback."""

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from arbiters.errors import InvalidError
from soma_agents.serving.gateway import Caller
from soma_agents.settings import Settings
from soma_agents.storage.keys import ApiKeys
from soma_agents.web.dependencies import Identity
from soma_agents.web.errors import plain

log = structlog.get_logger(__name__)

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz"})
OWNER = Identity(caller=Caller(), role="admin", key="open")
CLI = Identity(caller=Caller(), role="admin", key="command line")


def check_exposure(settings: Settings, keys: ApiKeys) -> None:
    """Say at start whether SOMA is open.

    Raises:
        InvalidError: it would listen beyond loopback without any key.
    """
    if keys.list():
        return
    host = settings.server.host
    if not _is_loopback(host):
        raise InvalidError(
            f"server.host is {host!r}, which others can reach, and there are no API keys; "
            "make one with `soma keys create NAME --admin` or listen on '127.0.0.1'"
        )
    log.warning("no API keys: everyone on this machine may use SOMA as its owner", host=host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(connection: HTTPConnection) -> bool:
    """Whether the request names this machine, and no page from elsewhere sent it."""
    origin = connection.headers.get("origin", "")
    names = [connection.url.hostname or ""]
    if origin:
        names.append(urlsplit(origin).hostname or "")
    return all(_is_loopback(name) for name in names)


class Authentication:
    """Puts an `Identity` into the scope, or answers 401."""

    def __init__(self, app: ASGIApp, *, settings: Settings, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys
        self._may_be_open = _is_loopback(settings.server.host)
        self._cli_token = settings.home / "run" / "cli_token"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = self._identify(HTTPConnection(scope))
        public = scope["path"] in OPEN_PATHS or scope["path"].startswith("/static/")
        if identity is None and not public:
            answer = plain(
                401,
                "this SOMA wants an API key: send `Authorization: Bearer KEY`; "
                "its owner makes one with `soma keys create`",
                {"WWW-Authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            return
        scope["soma.identity"] = identity
        await self._app(scope, receive, send)

    def _identify(self, connection: HTTPConnection) -> Identity | None:
        """The caller; None when a key is needed and this is none.

        Open means open to programs on this machine: a page on the web that has its own name
        resolve to loopback still names itself in `Host` and `Origin`.
        """
        if not self._keys.list() and self._may_be_open and _is_local(connection):
            return OWNER
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            return None
        key = self._keys.lookup(secret)
        if key is not None:
            return Identity(caller=Caller(key.tenant, key.user), role=key.role, key=key.name)
        return CLI if self._is_cli(secret) else None

    def _is_cli(self, secret: str) -> bool:
        """The token in the data directory, which only its owner can read."""
        try:
            token = self._cli_token.read_text().strip()
        except OSError:
            return False
        return bool(token) and hmac.compare_digest(token.encode(), secret.encode())
