"""Calling a named actor that may be restarting: wait for it, and let our own errors through."""

import asyncio
import contextvars
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from arbiters.errors import SomaError, UnavailableError
from soma_agents.cluster.names import NAMESPACE

BACK_OFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class NamedActor:
    """A detached actor found by its name, again after each of its restarts."""

    def __init__(self, name: str, *, patience: float = 30.0) -> None:
        self.name = name
        self._patience = patience
        self._handle: ActorHandle | None = None

    async def call(self, method: str, *arguments: Any, again: bool, allow: float = 0.0) -> Any:
        """Call a method and return its answer.

        Args:
            method: the actor's method.
            arguments: what it is called with.
            again: whether the call may be repeated when the actor died under it.
            allow: seconds that the method itself may take, on top of the patience.

        Raises:
            UnavailableError: the actor was not there for `patience` seconds, or died under a
                call that must not be repeated.
            SomaError: whatever of ours the method raised.
        """
        deadline = time.monotonic() + self._patience + allow
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._submit(method, arguments)
            except RayTaskError as error:
                raise _ours(error) from None
            except (RayActorError, ValueError) as error:
                # ValueError: nothing has the name yet, or not any more.
                self._handle = None
                sent = isinstance(error, RayActorError)
                if sent and not again:
                    raise UnavailableError(
                        f"{self.name} died during {method!r}; look whether it took effect, then ask again"
                    ) from error
                pause = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
                if time.monotonic() + pause > deadline:
                    raise self._gone(method) from error
                await asyncio.sleep(pause)
                attempt += 1
            except TimeoutError:
                self._handle = None
                raise self._gone(method) from None
            except RayError as error:
                raise UnavailableError(f"{self.name} cannot be reached: {error}") from error

    def _submit(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call from no context: Ray cancels with a request all calls made in its context.

        A client who leaves must not take the event of its leaving with it.
        """
        return contextvars.Context().run(getattr(self._found(), method).remote, *arguments)

    def _found(self) -> ActorHandle:
        if self._handle is None:
            self._handle = ray.get_actor(self.name, namespace=NAMESPACE)
        return self._handle

    def _gone(self, method: str) -> UnavailableError:
        return UnavailableError(
            f"{self.name} did not answer {method!r} in {self._patience:g} s; see `soma status`"
        )


def _ours(error: RayTaskError) -> BaseException:
    """The error that the actor raised, without Ray's wrapping when it is ours."""
    cause = error.cause
    return cause if isinstance(cause, SomaError) else error
