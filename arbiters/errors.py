"""One tree of errors. Each message names the thing, its value and the way out."""


class SomaError(Exception):
    """Anything SOMA refuses or fails at, fit to be shown to a user."""


class NotFoundError(SomaError):
    """Something was asked for by a name or id that nothing has."""


class ConflictError(SomaError):
    """The state moved on: a compare-and-swap lost, a name is taken, a thing was done before."""


class InvalidError(SomaError):
    """Input that can never be accepted."""


class ForbiddenError(SomaError):
    """Who asks may not have this."""


class BusyError(SomaError):
    """No room now; `retry_after` says in how many seconds to ask again."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(SomaError):
    """A part that is needed is not there now: not started, restarting, or gone."""


class CorruptError(SomaError):
    """Stored bytes are not what was written."""


class StorageFullError(SomaError):
    """The disk takes no more; what was stored can still be read."""
