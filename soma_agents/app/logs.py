"""Logging: one JSON object a line, in `$SOMA_HOME/logs/<process>.jsonl`, rotated by size."""

import functools
import logging
import logging.handlers
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from soma_agents.settings import Settings

MAX_BYTES = 10_000_000
BACKUPS = 3
_CONTENT = ("content", "prompt", "reply", "text")
"""Fields that hold people's words."""


def setup(settings: Settings, process: str, *, console: bool = False) -> None:
    """Send the log of this process to its file, and warnings to the terminal if `console`."""
    directory = settings.home / "logs"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    shared = _processors(log_content=settings.privacy.log_content)
    file = logging.handlers.RotatingFileHandler(
        directory / f"{process}.jsonl", maxBytes=MAX_BYTES, backupCount=BACKUPS
    )
    file.setFormatter(_formatter(structlog.processors.JSONRenderer(), shared))
    handlers: list[logging.Handler] = [file]
    if console:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(_formatter(structlog.dev.ConsoleRenderer(), shared))
        handlers.append(terminal)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.INFO)
    for chatty in ("apscheduler", "httpx2", "httpcore2", "uvicorn.access", "ray"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def preparer(settings: Settings) -> Callable[[str], None]:
    """`setup` for other processes: they call it with their name."""
    return functools.partial(setup, settings)


def _processors(*, log_content: bool) -> list[Any]:
    kept: list[Any] = [] if log_content else [_without_content]
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        *kept,
    ]


def _formatter(renderer: Any, shared: list[Any]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )


def _without_content(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for field in _CONTENT:
        event.pop(field, None)
    return event
