"""What a plugin is handed when it starts."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ksi_daemon.bus import Bus
from ksi_daemon.confinement import Confined
from ksi_daemon.event_system import declarations_of
from ksi_daemon.principals import Principal, TokenStore, id_of
from ksi_daemon.protocol import Denied, NotFound, Unavailable
from ksi_daemon.router import Router
from ksi_daemon.supervisor import RestartPolicy, Supervisor

__all__ = ["Plugin"]

Service = TypeVar("Service")


class Plugin:
    """A plugin's own view of the daemon, or of its host.

    Attributes:
        name: The plugin's name, which is also its section in the settings.
        settings: The Struct that `PluginInfo.settings` names, filled in; ``None`` without one.
        bus: Sends events.
        home: ``KSI_HOME``.
        log: A logger whose lines bear the plugin's name.
        daemon: The daemon itself, for the plugins that are part of it; ``None`` in a host.
    """

    def __init__(
        self,
        name: str,
        settings: Any,
        bus: Bus,
        home: Path,
        router: Router,
        supervisor: Supervisor,
        tokens: TokenStore | None = None,
        daemon: Any = None,
        services: dict[type, Any] | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.bus = bus
        self.home = home
        self.log = logging.getLogger(f"ksi.plugin.{name}")
        self.daemon = daemon
        self._router = router
        self._supervisor = supervisor
        self._tokens = tokens
        self._services = services

    def add(self, *owners: object) -> None:
        """Take on the decorated functions of modules, or the decorated methods of objects.

        Raises:
            Conflict: Another plugin answers one of the events.
            InvalidData: A function has a signature that can't be served.
        """
        for owner in owners:
            self._router.add(self.name, declarations_of(owner))

    def start_task(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        policy: RestartPolicy | None = None,
    ) -> None:
        """Keep a coroutine function running until the plugin stops; restarted when it fails."""
        self._supervisor.start(f"{self.name}: {name}", run, policy)

    def stop_task(self, name: str) -> None:
        """Stop what `start_task` started."""
        self._supervisor.stop(f"{self.name}: {name}")

    def issue_token(self, principal: Principal, *, ttl_s: float, once: bool = False) -> str:
        """Make a token for a child process; it does not outlive the daemon.

        With ``once`` it is good for one connection.

        Raises:
            Denied: The plugin runs in a host, which issues none.
        """
        if self._tokens is None:
            raise Denied("a plugin in a host issues no tokens: send token:create")
        return self._tokens.issue(principal, ttl_s=ttl_s, once=once)

    def revoke_token(self, token: str) -> None:
        """End a token that `issue_token` made, where it has not ended by itself."""
        if self._tokens is not None:
            with suppress(NotFound):
                self._tokens.revoke(id_of(token))

    @property
    def confined(self) -> Confined:
        """The processes that are not to pass for the owner without a token.

        Raises:
            Denied: The plugin runs in a host, which does not listen to anybody.
        """
        if self._tokens is None:
            raise Denied("a plugin in a host confines no processes")
        return self._tokens.confined

    def offer(self, service: object) -> None:
        """Let the plugins that require this one call an object, which they find by its class.

        Raises:
            Denied: The plugin runs in a host, where nobody could call it.
        """
        self._offered()[type(service)] = service

    def service(self, kind: type[Service]) -> Service:
        """Return the object of a class that a plugin offers which this one requires.

        Raises:
            Denied: This plugin runs in a host, and what it wants to call in the daemon.
            Unavailable: Nobody offers one.
        """
        found: Service | None = self._offered().get(kind)
        if found is None:
            raise Unavailable(f"no plugin offers a {kind.__name__}; require the one that does")
        return found

    def _offered(self) -> dict[type, Any]:
        if self._services is None:
            raise Denied(f"{self.name} uses another plugin's objects: it can't be isolated")
        return self._services
