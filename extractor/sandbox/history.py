"""What happens to a collection after the start: rows come, change and go, each at a moment that the seed fixes.

A story is a list of events that time only lengthens, so that the rows of any moment are those of any sandbox
with equal options at that moment, whatever was asked of it before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from extractor.sandbox.chance import Chance

__all__ = ("PLOTS", "Chapter", "Event", "Plot", "Story")

_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What may happen to a collection: of ten events so many rows come and so many go, and the rest change.

    `changes` are the values that a field may take; a field of no values takes the moment of the change.
    `key` is what an added row has of its own where the collection does not make one itself.
    """

    comes: int = 0
    goes: int = 0
    changes: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: MappingProxyType({}))
    key: str = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened, at an epoch second, to the row of an ordinal."""

    at: int
    op: Literal["add", "change", "delete"]
    ordinal: int
    change: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """A collection at one moment: rows added since the start, ordinals that are not there, fields that differ."""

    added: int = 0
    absent: frozenset[int] = frozenset()
    changed: Mapping[int, Mapping[str, object]] = field(default_factory=dict)


class Story:
    """The events of one collection of `count` rows, about `per_day` of them a day."""

    def __init__(
        self, name: str, plot: Plot, chance: Chance, *, anchor: int, per_day: int, count: int
    ) -> None:
        self._name = name
        self._plot = plot
        self._chance = chance
        self._anchor = anchor
        self._per_day = per_day
        self._least = max(2, count // 2)
        self._present = list(range(count))
        self._added = 0
        self._drawn = 0
        self._events: list[Event] = []

    def events(self, until: float) -> list[Event]:
        """What happened up to a moment, in order."""
        while self._at(self._drawn) <= until:
            event = self._draw(self._drawn)
            self._drawn += 1
            if event is not None:
                self._events.append(event)
        return [event for event in self._events if event.at <= until]

    def chapter(self, now: float) -> Chapter:
        """The collection as it stands at a moment."""
        added = 0
        absent: set[int] = set()
        changed: dict[int, dict[str, object]] = {}
        for event in self.events(now):
            match event.op:
                case "add":
                    added += 1
                case "delete":
                    absent.add(event.ordinal)
                case "change":
                    changed.setdefault(event.ordinal, {}).update(event.change)
        return Chapter(added=added, absent=frozenset(absent), changed=changed)

    def _at(self, number: int) -> int:
        jitter = self._chance.bits(f"{self._name} when", number) % 1000 / 1000
        return self._anchor + int((number + jitter) * _DAY / self._per_day)

    def _draw(self, number: int) -> Event | None:
        bits = self._chance.bits(f"{self._name} what", number)
        at, plot = self._at(number), self._plot
        roll, place = bits % 10, (bits >> 8) % max(1, len(self._present))
        if roll < plot.comes:
            self._added += 1
            self._present.append(-self._added)
            return Event(at=at, op="add", ordinal=-self._added)
        if roll < plot.comes + plot.goes and len(self._present) > self._least:
            return Event(at=at, op="delete", ordinal=self._present.pop(place))
        if not plot.changes or not self._present:
            return None
        names = sorted(plot.changes)
        name = names[(bits >> 40) % len(names)]
        values = plot.changes[name]
        value = values[(bits >> 48) % len(values)] if values else at
        return Event(at=at, op="change", ordinal=self._present[place], change={name: value})


# By the names under which the world keeps its collections.
PLOTS: Mapping[str, Plot] = MappingProxyType(
    {
        "services": Plot(
            comes=2,
            goes=2,
            changes={
                "status": ("ready", "stopped", "pending_scale", "failed"),
                "size": ("sky-2x8", "sky-4x16", "sky-8x32"),
                "updated_on": (),
            },
        ),
        "users": Plot(comes=2, goes=2, changes={"last_name": ("Moss", "Nettle", "Olive"), "updated_on": ()}),
        "projects": Plot(
            comes=2, goes=2, changes={"description": ("", "moved", "to be closed"), "updated_on": ()}
        ),
        "channels": Plot(comes=2, goes=2, changes={"channel_name": ("night shift", "on call", "all")}),
        "backups": Plot(comes=4, goes=2, changes={"status": ("Succeeded", "Running", "Failed")}),
        "schedules": Plot(
            comes=2, goes=2, changes={"suspended": (True, False), "message": ("", "last run failed")}
        ),
        "restores": Plot(comes=2, goes=2, changes={"status": ("Succeeded", "Running", "Failed")}),
        "agents": Plot(changes={"status": ("DEPLOYED", "DEVELOPMENT", "RETIRED")}),
        "commit ledger": Plot(comes=2),
        "credit ledger": Plot(comes=4),
        "offerings": Plot(changes={"description": ("for teams", "for companies")}),
        "contacts": Plot(changes={"phone": ("+48 111 111 111", "+48 222 222 222")}),
    }
)
