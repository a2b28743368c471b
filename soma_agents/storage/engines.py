"""Which engine keeps the event log."""

from arbiters.errors import ConflictError
from policies.retention import Retention
from soma_agents.settings import Settings
from soma_agents.storage.chained_log import ChainedLog
from soma_agents.storage.event_log import SqliteEventLog


async def open_log(settings: Settings) -> ChainedLog:
    """Open the event log that the settings name.

    Raises:
        ConflictError: another process has the file, or it holds the events already.
        SomaError: whatever the engine raises at opening.
    """
    if not settings.log.url:
        return await SqliteEventLog.open(settings.log_file, Retention(settings.log.keep_events))
    if settings.log_file.exists():
        raise ConflictError(
            f"{settings.log_file} holds the events of this data directory and log.url names "
            "another log; take that setting out, or start with an empty data directory"
        )
    from soma_agents.storage.postgres_log import PostgresEventLog

    return await PostgresEventLog.open(settings.log.url)
