# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with a mirror, and which of it is news. Pure."""

from dataclasses import dataclass, field

from dmsoft.mirror.views import Alert
from dmsoft.monitor.events import Event


@dataclass(slots=True)
class Alarms:
    """``seen``: what `status` said at the last look; ``own``, by what it is about: what only the daemon knows."""

    mirror: str
    seen: tuple[Alert, ...] = ()
    own: dict[str, Alert] = field(default_factory=dict)
    _raised: dict[tuple[str, str], Alert] = field(default_factory=dict)

    @property
    def raised(self) -> tuple[Alert, ...]:
        return tuple(self._raised.values())

    def note(self, about: str, alert: Alert | None) -> None:
        """Something the daemon knows; None: it is well again."""
        if alert is None:
            self.own.pop(about, None)
        else:
            self.own[about] = alert

    def news(self) -> list[Event]:
        """What was raised and what was cleared since the last time; figures in a summary change without that."""
        now = {(alert.code, _subject(alert)): alert for alert in (*self.seen, *self.own.values())}
        news = [self._event("alert-raised", alert) for key, alert in now.items() if key not in self._raised]
        news += [self._event("alert-cleared", alert) for key, alert in self._raised.items() if key not in now]
        self._raised = now
        return news

    def _event(self, event: str, alert: Alert) -> Event:
        return Event(event, self.mirror, code=alert.code, summary=alert.summary)


def _subject(alert: Alert) -> str:
    """Whom it is about, which is its first word where there are several: a secondary."""
    return alert.summary.split(maxsplit=1)[0] if alert.summary else ""
