"""What handlers are given: the parts of SOMA, and who asks."""

from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from policies.access import Action, Refuse, may
from soma_agents.serving.gateway import Caller
from soma_agents.web.services import Services


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as established by the authentication."""

    caller: Caller
    role: str
    key: str


async def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


def _may(action: Action) -> Any:
    """A dependency that gives the caller's identity if their role may do this."""

    async def identity(request: Request) -> Identity:
        found = cast("Identity", request.scope["soma.identity"])
        permission = may(found.role, action)
        if isinstance(permission, Refuse):
            raise HTTPException(403, permission.because)
        return found

    return Depends(identity)


Parts = Annotated[Services, Depends(_services)]
Looks = Annotated[Identity, _may("look")]
Chats = Annotated[Identity, _may("chat")]
Judges = Annotated[Identity, _may("judge")]
Imports = Annotated[Identity, _may("import")]
Exports = Annotated[Identity, _may("export")]
Forgets = Annotated[Identity, _may("forget")]
Trains = Annotated[Identity, _may("train")]
Promotes = Annotated[Identity, _may("promote")]
Inspects = Annotated[Identity, _may("inspect")]
