"""Takes events from outside, and tells how the runs stand that they began."""

import hashlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ksi_completion.events import (
    CompletionAccepted,
    CompletionCancel,
    CompletionCancelled,
    CompletionResult,
    CompletionWait,
)
from ksi_daemon.protocol import InvalidData
from ksi_http.events import HttpRaw, HttpRawFound, HttpRawKeep
from ksi_http.sidecar import bodies, errors
from ksi_http.sidecar.callers import Caller, checked_user
from ksi_http.sidecar.chats import conversation_of
from ksi_http.sidecar.generated import idempotency_key
from ksi_http.sidecar.openapi import KEY_PARAMETER, described, operation, path_parameter

if TYPE_CHECKING:
    from ksi_http.sidecar.app import Sidecar

AGENT: Final = "general"
MAX_WAIT_S: Final = 60.0
Status = Literal["queued", "running", "succeeded", "failed"]
STATUSES: Final[dict[str, Status]] = {
    "waiting": "queued",
    "running": "running",
    "paused": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "failed",
}
RUN: Final = [path_parameter("run_id")]
WAIT: Final = {
    "name": "wait_s",
    "in": "query",
    "required": False,
    "description": "How long to wait for its end.",
    "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
}


class NormalizedEvent(Struct, frozen=True, kw_only=True):
    """Something that happened elsewhere, such as a message in a chat.

    ``conversation_key`` is whatever names the conversation there, ``user_key`` who it is from.
    ``raw`` is the event as it came; it is kept apart, and no model sees it.
    """

    schema_version: Literal[1]
    type: Annotated[str, Meta(min_length=1, max_length=200)]
    conversation_key: Annotated[str, Meta(min_length=1, max_length=2000)]
    user_key: Annotated[str, Meta(min_length=1, max_length=200)]
    text: Annotated[str, Meta(min_length=1, max_length=2_000_000)]
    raw: Any = None


class RunBegun(Struct, frozen=True, kw_only=True):
    """The run that an event began."""

    run_id: str


class RunShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a run stands; ``output`` is what came of it."""

    run_id: str
    status: Status
    output: Any = UNSET
    error: errors.ErrorShown | UnsetType = UNSET


class Runs:
    """Begins runs, shows and ends them.

    Args:
        app: The server.
    """

    def __init__(self, app: "Sidecar") -> None:
        self._app = app

    @described(
        operation(
            "runs",
            "Take an event: a turn in its conversation.",
            answer=RunBegun,
            body=NormalizedEvent,
            parameters=[KEY_PARAMETER],
        )
    )
    async def take(self, request: web.Request) -> web.Response:
        """Begin a run for an event."""
        app, asked_by = self._app, self._app.caller(request)
        event = await bodies.read_json(request, app.settings, NormalizedEvent)
        user = checked_user(event.user_key, asked_by.key, "user_key")
        caller = Caller(asked_by.key, user, asked_by.presented)
        conversation = conversation_of(event.conversation_key)
        turn: dict[str, Any] = {
            "prompt": event.text,
            "conversation_id": conversation,
            "agent": agent_of(event.type, app.settings.event_agents),
        }
        key = idempotency_key(request)
        if key is not None:
            turn["request_id"] = f"event-{_digest(caller.id, key)}"
        accepted = await app.request(
            caller, "completion:async", turn, result_type=CompletionAccepted
        )
        if event.raw is not None:
            await self._keep(caller, accepted.run_id, event.raw)
        return _json(RunBegun(run_id=accepted.run_id))

    async def _keep(self, caller: Caller, run: str, raw: Any) -> None:
        async with self._app.connections.taken() as client:
            kept = HttpRawKeep(run_id=run, raw=Raw(msgspec.json.encode(raw)))
            await client.request("http:raw_keep", kept, context=caller.context)

    @described(
        operation("runs", "Tell how a run stands.", answer=RunShown, parameters=[*RUN, WAIT])
    )
    async def show(self, request: web.Request) -> web.Response:
        """Tell how a run stands, and what came of it."""
        result = await self._result(request, wait_s(request))
        shown = RunShown(run_id=result.run_id, status=STATUSES[result.status])
        if shown.status == "succeeded":
            output = result.text if result.output is None else result.output
            shown = msgspec.structs.replace(shown, output=output)
        elif shown.status == "failed":
            shown = msgspec.structs.replace(shown, error=_error_of(result))
        return _json(shown)

    async def _result(self, request: web.Request, wait: float = 0.0) -> CompletionResult:
        asked = CompletionWait(run_id=_run(request), timeout_s=wait)
        caller = self._app.caller(request)
        result: CompletionResult = await self._app.request(
            caller, "completion:wait", asked, result_type=CompletionResult
        )
        return result

    @described(operation("runs", "Return what came with a run's event.", parameters=RUN))
    async def raw(self, request: web.Request) -> web.Response:
        """Return what came with the event that began a run, as it came."""
        result = await self._result(request)  # whoever may see the run may see this
        caller = self._app.caller(request)
        async with self._app.connections.taken() as client:
            found = await client.request(
                "http:raw",
                HttpRaw(run_id=result.run_id),
                result_type=HttpRawFound,
                context=caller.context,
            )
        return web.Response(body=bytes(found.raw), content_type=errors.JSON)

    @described(operation("runs", "End a run.", answer=RunShown, parameters=RUN))
    async def cancel(self, request: web.Request) -> web.Response:
        """End a run; one that has ended stays as it is."""
        asked = CompletionCancel(run_id=_run(request))
        ended = await self._app.request(
            self._app.caller(request), "completion:cancel", asked, result_type=CompletionCancelled
        )
        return _json(RunShown(run_id=ended.run_id, status=STATUSES[ended.status]))


def agent_of(kind: str, agents: dict[str, str]) -> str:
    """Return the agent that takes the events of a type."""
    return next((agent for glob, agent in agents.items() if fnmatchcase(kind, glob)), AGENT)


def wait_s(request: web.Request) -> float:
    """Return how long a client wants to wait for the end.

    Raises:
        InvalidData: That is no time, or too long.
    """
    given = request.query.get("wait_s", "0")
    try:
        wait = float(given)
    except ValueError:
        wait = -1.0
    if not 0 <= wait <= MAX_WAIT_S:
        raise InvalidData(f"wait_s: seconds, {MAX_WAIT_S:g} at most")
    return wait


def _run(request: web.Request) -> str:
    run = request.match_info["run_id"]
    if not 0 < len(run) <= 200:
        raise InvalidData("run_id: up to 200 characters")
    return run


def _error_of(result: CompletionResult) -> errors.ErrorShown:
    code = "cancelled" if result.status == "cancelled" else "failed"
    error = result.error
    if error is None:
        return errors.ErrorShown(code, f"the run was {result.status}")
    return errors.ErrorShown(error.code, errors.KEPT_BACK.get(error.code, error.message))


def _digest(*parts: str) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:40]


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=errors.JSON)
