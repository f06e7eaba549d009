"""Tells that something has happened in an orchestration: to every daemon, and to who listens."""

from typing import Final

from ksi_daemon.bus import Bus
from ksi_orchestration.events import OrchestrationChanged, OrchestrationSaid, Utterance
from ksi_orchestration.store import Kept
from ksi_postgres.news import News, Waiters

WORD: Final = "changed"


class Telling:
    """Wakes those who follow an orchestration, in whichever daemon.

    Args:
        news: Reaches the other daemons.
        bus: Reaches who listens.

    Attributes:
        waiters: Those here who wait for news, by what `about` returns.
    """

    def __init__(self, news: News, bus: Bus) -> None:
        self.waiters = Waiters()
        self._news = news
        self._bus = bus
        news.on(WORD, self.waiters.wake)
        news.on_missed(self.waiters.wake_all)

    def stirred(self, tenant: str, which: str) -> None:
        """Have those look who follow it."""
        key = about(tenant, which)
        self.waiters.wake(key)
        self._news.tell(WORD, key)

    def changed(self, kept: Kept) -> None:
        """Tell how it stands now."""
        it = kept.told
        self.stirred(kept.tenant, it.id)
        changed = OrchestrationChanged(
            id=it.id,
            pattern=it.pattern,
            status=it.status,
            run_id=it.run_id,
            stage=it.stage,
            round=it.round,
            reason=it.reason,
        )
        self._bus.publish("orchestration:changed", changed)

    def said(self, kept: Kept, said: Utterance) -> None:
        """Tell that something was said."""
        self.stirred(kept.tenant, kept.id)
        told = OrchestrationSaid(
            id=kept.id,
            run_id=kept.told.run_id,
            number=said.number,
            member=said.member,
            stage=said.stage,
            round=said.round,
        )
        self._bus.publish("orchestration:said", told)


def about(tenant: str, which: str) -> str:
    """Return what news of an orchestration are about."""
    return f"{tenant}/{which}"
