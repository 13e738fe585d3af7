"""Who may write what: the leases of a lake, themselves a log of small files.

    _extractor/leases/N.json          the whole list of who holds which tables; the newest one counts
    _extractor/leases/beats/TOKEN     touched while the holder lives

A run holds its tables until it has published. What only takes a moment (a commit with its publication, of a
backfill, of compacting or expiring) holds them briefly: a run waits for that, as that waits for a run.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import orjson

from extractor.clock import Clock
from extractor.errors import LakeBusy, LakeError
from extractor.lists import encoded
from extractor.store import Store, StoreMissing

__all__ = ("FORMAT_VERSION", "Holder", "Leases", "TableKey", "live_runs", "this_process")

FORMAT_VERSION = 1

TableKey = tuple[str, str]
"""Table and account."""

_LEASES = "_extractor/leases"
_BEATS = "_extractor/leases/beats"
_LEASES_KEPT = 16
_REBASES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process, so described that another one can tell whether it still lives."""

    pid: int
    process_started: str
    """Tells apart two processes that had the same number in turn; empty where it cannot be known."""
    pid_namespace: str
    boot_id: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    token: str
    run_id: str
    taken_at: str
    holder: Holder
    tables: tuple[TableKey, ...]
    is_brief: bool = False


class Leases:
    """The right of one run to commit to some tables, all of them or none.

    The leases of a lake are a log of small files, each the whole list of who holds what; taking and releasing
    is creating the next number. So no two runs can hold a table, and a take-over is seen by the holder that
    lost it. The holder calls `beat` every `heartbeat_seconds`; whoever finds its process gone, or no beat for
    `stale_seconds` by the store's clock, may take the tables.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        clock: Clock,
        tables: Iterable[TableKey],
        heartbeat_seconds: float = 10,
        stale_seconds: float = 60,
        holder: Holder | None = None,
        token: str = "",
        is_brief: bool = False,
    ) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self._store = store
        self._clock = clock
        self._stale_seconds = stale_seconds
        self._number = 0
        self._mine = _Lease(
            token=token or secrets.token_hex(16),
            run_id=run_id,
            taken_at="",
            holder=holder if holder is not None else this_process(),
            tables=tuple(sorted(set(tables))),
            is_brief=is_brief,
        )

    @property
    def tables(self) -> frozenset[TableKey]:
        """What it gives the right to."""
        return frozenset(self._mine.tables)

    def acquire(self) -> None:
        """Hold all the tables.

        Raises: LakeBusy, naming the run in the way; nothing is held then. If its `is_brief` is true it is worth
        asking again in a moment.
        """
        self.beat()
        mine = replace(self._mine, taken_at=_time_text(self._clock.now()))
        try:
            for _ in range(_REBASES):
                number, leases = _read_leases(self._store)
                kept = [lease for lease in leases if lease.token != mine.token and self._keeps(lease)]
                if _put_leases(self._store, number + 1, [*kept, mine]):
                    self._number = number + 1
                    return
            raise LakeBusy(
                f"cannot lease tables of lake {self._store.uri}: other runs were always first; run again",
                is_brief=True,
            )
        except LakeError:  # a list that may have been put all the same names a holder without a sign of life
            self._store.delete(_beat_path(mine.token))
            raise

    def beat(self) -> None:
        """Say that the holder lives."""
        self._store.put(_beat_path(self._mine.token), b"{}\n")

    def are_mine(self) -> bool:
        """True as long as nobody has taken them over."""
        _, leases = _read_leases(self._store)
        return any(lease.token == self._mine.token for lease in leases)

    def check(self) -> None:
        """Return if they are still held.

        Raises: LakeBusy, naming the run that took them; LakeError if the lake was removed meanwhile.
        """
        number, leases = _read_leases(self._store)
        if any(lease.token == self._mine.token for lease in leases):
            return
        if number < self._number:
            raise LakeError(
                f"the leases in lake {self._store.uri} are gone: it was removed or replaced during the run; "
                "nothing was committed, run again"
            )
        others = [lease for lease in leases if set(lease.tables) & set(self._mine.tables)]
        taker = (
            f"run {others[0].run_id} took them over" if others else "another run took them over and has ended"
        )
        raise LakeBusy(
            f"run {self._mine.run_id} no longer holds its tables in lake {self._store.uri}: "
            f"it gave no sign of life and {taker}; nothing was committed, run again"
        )

    def release(self) -> None:
        """Hold nothing; what another run has taken over stays with it."""
        try:
            for _ in range(_REBASES):
                number, leases = _read_leases(self._store)
                kept = [lease for lease in leases if lease.token != self._mine.token]
                if len(kept) == len(leases) or _put_leases(self._store, number + 1, kept):
                    break
        finally:
            # Where nothing more can be written, this alone frees the tables: a holder without it is silent.
            self._store.delete(_beat_path(self._mine.token))

    def _keeps(self, lease: _Lease) -> bool:
        """Whether another's lease stays beside this one. Raises: LakeBusy if it stands in the way."""
        if _is_dead(lease.holder, self._mine.holder):
            return False
        wanted = sorted(set(lease.tables) & set(self._mine.tables))
        if not wanted:
            return True
        age_seconds = _silent_seconds(self._store, lease)
        if age_seconds > self._stale_seconds:
            return False
        table, account = wanted[0]
        others = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
        raise LakeBusy(
            f"table {table} of account {account}{others} is being written by run {lease.run_id} "
            f"(process {lease.holder.pid} on {lease.holder.host}, since {lease.taken_at}, "
            f"last sign of life {age_seconds:.0f} s ago); wait for it, then run again",
            is_brief=lease.is_brief or self._mine.is_brief,
        )


def live_runs(store: Store, *, stale_seconds: float = 60, holder: Holder | None = None) -> frozenset[str]:
    """The runs that hold a lease and show signs of life."""
    observer = holder if holder is not None else this_process()
    _, leases = _read_leases(store)
    return frozenset(
        lease.run_id
        for lease in leases
        if not _is_dead(lease.holder, observer) and _silent_seconds(store, lease) <= stale_seconds
    )


def this_process() -> Holder:
    """The process that asks."""
    boot_id = pid_namespace = ""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        pid_namespace = str(Path("/proc/self/ns/pid").readlink())
    return Holder(
        pid=os.getpid(),
        process_started=_process_started(os.getpid()) or "",
        pid_namespace=pid_namespace,
        boot_id=boot_id,
        host=socket.gethostname(),
    )


def _read_leases(store: Store) -> tuple[int, tuple[_Lease, ...]]:
    """The number of the newest list of leases, 0 if there is none, and what it says."""
    for _ in range(_REBASES):
        number = max(_lease_numbers(store), default=0)
        if number == 0:
            return 0, ()
        try:
            content = store.read(_leases_path(number))
        except StoreMissing:
            # Many others came and went between the two calls.
            continue
        try:
            return number, tuple(map(_lease_of, orjson.loads(content)["leases"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LakeError(
                f"{_leases_path(number)} in lake {store.uri} is damaged; "
                f"if no run is active, remove the folder {_LEASES} and run again"
            ) from error
    raise LakeError(f"cannot read {_LEASES} in lake {store.uri}: it changes all the time; run again")


def _put_leases(store: Store, number: int, leases: Sequence[_Lease]) -> bool:
    """True if this is the newest list of leases now; False if another writer was first."""
    content = encoded({"format_version": FORMAT_VERSION, "leases": leases})
    try:
        is_mine = store.put_if_absent(_leases_path(number), content)
    except LakeError:
        # Unanswered is not refused. Tokens are unique, so equal bytes are this call's.
        if not store.exists(_leases_path(number)) or store.read(_leases_path(number)) != content:
            raise
        is_mine = True
    numbers = _lease_numbers(store)
    if not is_mine:
        return False
    if max(numbers, default=number) >= number + _LEASES_KEPT:
        # The number was used and removed long ago: this caller slept, and what it wrote says nothing.
        store.delete(_leases_path(number))
        return False
    for done in numbers:
        if done <= number - _LEASES_KEPT:
            store.delete(_leases_path(done))
    return True


def _lease_numbers(store: Store) -> list[int]:
    numbers: list[int] = []
    for stored in store.list(_LEASES):
        stem = stored.path.removeprefix(f"{_LEASES}/").removesuffix(".json")
        if stem.isdecimal():
            numbers.append(int(stem))
    return numbers


def _lease_of(content: Mapping[str, object]) -> _Lease:
    return _Lease(
        token=str(content["token"]),
        run_id=str(content["run_id"]),
        taken_at=str(content["taken_at"]),
        holder=Holder(**cast(dict[str, str], content["holder"])),  # type: ignore[arg-type]  # pid is a number
        tables=tuple((table, account) for table, account in cast(list[list[str]], content["tables"])),
        is_brief=bool(content.get("is_brief")),
    )


def _is_dead(holder: Holder, observer: Holder) -> bool:
    """True if the process is known to be gone; only a process of the same machine can know that."""
    if holder.host != observer.host or not holder.boot_id or not observer.boot_id:
        return False
    if holder.boot_id != observer.boot_id:
        return True
    if holder.pid_namespace != observer.pid_namespace:
        return False
    started = _process_started(holder.pid)
    return started is None or bool(started and holder.process_started and started != holder.process_started)


def _process_started(pid: int) -> str | None:
    """When the process began, in its system's terms, empty if that cannot be known; None if it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    try:
        # The name in parentheses may hold anything, so count from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started


def _silent_seconds(store: Store, lease: _Lease) -> float:
    found = store.stat(_beat_path(lease.token))
    if found is None:
        # Released a moment ago, or the file was removed by hand: not a sign of life either way.
        return float("inf")
    return max(0.0, (store.now() - found.modified_at).total_seconds())


def _leases_path(number: int) -> str:
    return f"{_LEASES}/{number:020d}.json"


def _beat_path(token: str) -> str:
    return f"{_BEATS}/{token}.json"


def _time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
