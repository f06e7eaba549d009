"""Who is calling: the key that a request bears, and for whom it speaks."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final
from weakref import WeakValueDictionary

from aiohttp import web

from ksi_daemon.protocol import Busy, Denied, InvalidData
from ksi_daemon.protocol.names import matches_any
from ksi_http import keys
from ksi_http.events import HttpCaller
from ksi_http.keys import Presented
from ksi_http.sidecar.errors import Unauthenticated
from ksi_http.sidecar.limits import Buckets

MAX_KNOWN: Final = 10_000
UNKNOWN_PER_S: Final = 20.0  # keys that were never valid here, of whomsoever; each asks the daemon
UNKNOWN_BURST: Final = 100
MAX_USER_CHARACTERS: Final = 200
KEY_NAMES: Final = frozenset({"api_key", "apikey", "x-api-key", "access_token", "authorization"})
SUBPROTOCOL: Final = "bearer."

Ask = Callable[[Presented], Awaitable[HttpCaller]]


class Caller:
    """Whom a request is for, and what its key may do.

    Attributes:
        key: What the daemon says of the key.
        user: The user whom this request is for.
        presented: The key as it was shown: its id and hash.
    """

    __slots__ = ("__dict__", "key", "presented", "user")

    def __init__(self, key: HttpCaller, user: str | None, presented: Presented) -> None:
        self.key = key
        self.user = user
        self.presented = presented

    @property
    def tenant(self) -> str:
        """Whose data these are."""
        return self.key.tenant

    @property
    def id(self) -> str:
        """The key's id."""
        return self.key.key_id

    @cached_property
    def context(self) -> dict[str, Any]:
        """In whose name what it asks is sent."""
        fields = {"tenant": self.tenant, "principal": f"token:http-{self.id}"}
        return fields if self.user is None else {**fields, "user": self.user}

    def may(self, scope: str) -> bool:
        """Say whether the key has a scope."""
        return matches_any(scope, self.key.scopes)

    def demand(self, scope: str) -> None:
        """Go on only if the key has a scope.

        Raises:
            Denied: It has not.
        """
        if not self.may(scope):
            raise Denied(f"this key has not the scope {scope}")


class Callers:
    """Knows keys for a few seconds, so that not every request asks the daemon.

    Args:
        ask: Asks the daemon whose a key is.
        known_s: How long its answer counts.
    """

    def __init__(self, ask: Ask, known_s: float) -> None:
        self._ask = ask
        self._known_s = known_s
        self._known: OrderedDict[str, tuple[float, HttpCaller]] = OrderedDict()
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._forgotten = 0
        self._unknown = Buckets(UNKNOWN_PER_S, UNKNOWN_BURST)

    async def of(self, request: web.Request) -> Caller:
        """Return who makes a request.

        Raises:
            Unauthenticated: It has no valid key.
            Denied: It is for a user for whom its key may not speak.
            InvalidData: The key is where it does not belong, or a header makes no sense.
        """
        presented = read_key(request)
        key = await self._valid(presented)
        return Caller(key, user_of(request, key), presented)

    async def _valid(self, presented: Presented) -> HttpCaller:
        key = self._lately_known(presented)
        if key is not None:
            return key
        # Many requests may come at once with a key that is not known yet: one of them asks.
        async with self._asking.setdefault(presented.digest, asyncio.Lock()):
            return self._lately_known(presented) or await self._asked(presented)

    def _lately_known(self, presented: Presented) -> HttpCaller | None:
        since, key = self._known.get(presented.digest, (-math.inf, None))
        return key if time.monotonic() - since < self._known_s else None

    async def _asked(self, presented: Presented) -> HttpCaller:
        now, forgotten = time.monotonic(), self._forgotten
        key = self._known.get(presented.digest)
        if key is None and (wait := self._unknown.take("")):
            raise Busy("too many keys that are not valid were shown", retry_after_s=wait)
        try:
            told = await self._ask(presented)
        except Denied as error:
            self._known.pop(presented.digest, None)
            raise Unauthenticated(error.message) from error
        if self._forgotten == forgotten:  # else it may have been revoked meanwhile
            self._known[presented.digest] = (now, told)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return told

    def forget(self, key_id: str) -> None:
        """Ask again about a key that was revoked."""
        self._forgotten += 1
        for digest in [d for d, (_, key) in self._known.items() if key.key_id == key_id]:
            del self._known[digest]


def read_key(request: web.Request) -> Presented:
    """Return the key that a request bears, in a header.

    Raises:
        Unauthenticated: There is none, or it has not a key's form.
        InvalidData: It is in the address, or there are several.
    """
    _refuse_in_address(request)
    found = set(_shown(request))
    if not found:
        raise Unauthenticated("send a key: 'Authorization: Bearer <key>', or 'x-api-key: <key>'")
    if len(found) > 1:
        raise InvalidData("several keys were sent; send one")
    presented = keys.read(found.pop())
    if presented is None:
        raise Unauthenticated("that is no key; see: ksi key show")
    return presented


def _shown(request: web.Request) -> list[str]:
    headers = request.headers
    found = [text.strip() for text in headers.getall("x-api-key", ())]
    for text in headers.getall("Authorization", ()):
        scheme, _, key = text.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("send the key as 'Authorization: Bearer <key>'")
        found.append(key.strip())
    # A web page can't give a WebSocket headers of its own, but subprotocols.
    for text in headers.getall("Sec-WebSocket-Protocol", ()):
        offered = [part.strip() for part in text.split(",")]
        found += [p.removeprefix(SUBPROTOCOL) for p in offered if p.startswith(SUBPROTOCOL)]
    return found


def _refuse_in_address(request: web.Request) -> None:
    if not request.query_string and keys.PREFIX not in request.path:
        return
    names = {name.lower() for name in request.query}
    if names & KEY_NAMES or keys.PREFIX in request.query_string or keys.PREFIX in request.path:
        raise InvalidData(
            "a key never belongs in an address, which logs and histories keep: send it in a "
            "header, and revoke one that was sent so"
        )


def user_of(request: web.Request, key: HttpCaller) -> str | None:
    """Return the user whom a request is for.

    Raises:
        Denied: Its key may not speak for that user.
        InvalidData: The header names nobody.
    """
    named = request.headers.getall("x-user-id", ())
    if not named:
        return key.user
    if len(named) > 1:
        raise InvalidData("x-user-id: name one user")
    return checked_user(named[0].strip(), key, "x-user-id")


def checked_user(user: str, key: HttpCaller, where: str) -> str:
    """Return a user whom a request names, if its key may speak for that one.

    Raises:
        Denied: It may not.
        InvalidData: That names nobody.
    """
    if not 0 < len(user) <= MAX_USER_CHARACTERS or not user.isprintable():
        raise InvalidData(f"{where}: name one user, in up to {MAX_USER_CHARACTERS} characters")
    if user != key.user and not key.may_act_for_others:
        raise Denied(f"this key may not act for others: leave {where} out")
    return user
