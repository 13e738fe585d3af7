"""The log of the lake, as it is read: entries, the states of tables that they name, and the lists these stand in.

    _extractor/log/N.json       an entry: the whole logical state, by reference
    _extractor/lists/DIGEST.json  immutable lists of files, columns and state, shared by entries
    _extractor/folds/N.json.gz  entries that are old, 256 in a file, with the lists that only they refer to
    _extractor/latest.json      a hint where to begin looking for the newest entry

How an entry comes to be is in `commit`. Reading writes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import orjson

from extractor.errors import LakeError
from extractor.fold import FOLD_ENTRIES, Folds
from extractor.lease import FORMAT_VERSION, TableKey
from extractor.lists import encoded, pair_of, recent_items, sha256
from extractor.store import Store, StoreMissing

if TYPE_CHECKING:
    # It brings Arrow with it, and listing the runs of a lake must not wait for that.
    from extractor.write import DataFile

__all__ = (
    "LATEST",
    "CommitLog",
    "LogEntry",
    "TableRef",
    "TableState",
    "encode_entry",
    "entry_path",
    "file_value",
    "list_path",
    "nested",
    "read_hint",
    "time_text",
)

_LOG = "_extractor/log"
_LISTS = "_extractor/lists"
LATEST = "_extractor/latest.json"

_PROBES = 64
"""So many entries a hint may lag before listing the log is quicker than probing on."""
_BASES_OPEN = 4
_FILES_READ = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What one table of one account is, logically: its files, and what the next run must know."""

    table: str
    account: str
    sync: str
    """`snapshot`, `window` or `append`."""
    status: str
    """Outcome of its last run: `complete`, `partial`, `failed`, `denied`, `held`, `absent` or `skipped`."""
    reason: str
    """Why its rows are all of them, or why not."""
    rows: int
    files: tuple[DataFile, ...]
    """Read back they stand in the order of their paths."""
    columns: tuple[Mapping[str, object], ...]
    """The table's schema, as JSON-like values that the log does not look into."""
    state: Mapping[str, object]
    """Cursors, windows, positions, as JSON-like values; what changes apart should have a key of its own."""
    run_id: str
    """The run that wrote its newest files."""
    proved_by: str
    """The run that last proved it."""
    snapshot_at: str | None
    content: str
    """Order-free digest of the current snapshot."""

    @property
    def is_event(self) -> bool:
        """True where rows are added once and then stay."""
        return self.snapshot_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRef:
    """A table's state as it stands in an entry: what is asked often, and the digest of the rest."""

    digest: str
    """Names the list that holds files, columns and state."""
    sync: str
    status: str
    reason: str
    rows: int
    files: int
    size_bytes: int
    folder: str
    """The folder `…/run=RUN` if all its files stand in one, else empty."""
    run_id: str
    proved_by: str
    snapshot_at: str | None
    content: str

    @property
    def is_event(self) -> bool:
        """True where rows are added once and then stay."""
        return self.snapshot_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One commit: the state of every table of every account after it."""

    sequence: int
    run_id: str
    run_part: int
    """1 for the first entry of the run; a run may commit several times."""
    is_final: bool
    """The run is over: nothing in its staging is wanted once this entry is published."""
    status: str
    started_at: datetime
    committed_at: datetime
    """Never earlier than that of the entry before."""
    tables: Mapping[TableKey, TableRef]
    publishing: Mapping[str, tuple[int, ...]]
    """Runs whose staging is not gone yet, with their entries: what may be left to publish."""
    replaced: str
    """Digest of the list that maps files this entry removed to those that hold their rows now, or empty."""
    summary: Mapping[str, object]
    source: Mapping[str, object]
    predecessor: str
    """SHA-256 of the bytes of the entry before; empty for the first."""
    graces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By their number, entries whose removed files are still kept: until when, and one of the files."""
    base: str = field(default="", compare=False)
    """Digest of a list of tables that entries share, or empty: only what differs from it is in the entry itself."""
    format_version: int = FORMAT_VERSION
    digest: str = field(default="", compare=False)
    """SHA-256 of this entry's own bytes; not part of them."""


class CommitLog:
    """The entries of a lake, and the lists they refer to. Reading one writes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.folds = Folds(store)
        self._bases: OrderedDict[str, Mapping[TableKey, TableRef]] = OrderedDict()
        self._files_read: OrderedDict[str, tuple[DataFile, ...]] = OrderedDict()

    def newest(self) -> LogEntry | None:
        """The newest entry, None if there is none yet; reads two entries at most.

        Raises: LakeError as `read`, and if the entry before it is missing or is not the one it was built on.
        """
        sequence = self._newest_number()
        if sequence == 0:
            return None
        entry = self.read(sequence)
        if sequence > 1 and self.digest_of(sequence - 1) != entry.predecessor:
            raise self._broken_chain(sequence)
        return entry

    def read(self, sequence: int) -> LogEntry:
        """The entry with this number. Raises: LakeError if missing, changed by hand, or of a newer format."""
        content = self._content(sequence)
        if content is None:
            raise self._missing_number(sequence)
        return self.decoded(content, sequence)

    def decoded(self, content: bytes, sequence: int) -> LogEntry:
        """The entry in these bytes. Raises: as `read`."""
        return _decode_entry(
            content,
            sequence=sequence,
            lake=self._store.uri,
            base_of=lambda digest: self.base(digest, sequence),
        )

    def base(self, digest: str, near: int = 0) -> Mapping[TableKey, TableRef]:
        """The tables of a list that entries share."""
        if not digest:
            return {}
        found = self._bases.get(digest)
        if found is None:
            found = _flat(self.read_list(digest, near)["tables"])
            self._bases[digest] = found
        self._bases.move_to_end(digest)
        while len(self._bases) > _BASES_OPEN:
            self._bases.popitem(last=False)
        return found

    def entries(self) -> Iterator[LogEntry]:
        """All entries, oldest first. Raises: LakeError as `newest`, and where a number is missing."""
        predecessor = ""
        for sequence in range(1, self.check_numbers() + 1):
            entry = self.read(sequence)
            if entry.predecessor != predecessor:
                raise self._broken_chain(sequence)
            predecessor = entry.digest
            yield entry

    def backwards(self, entry: LogEntry | None = None) -> Iterator[LogEntry]:
        """The entries from `entry`, or the newest, to the oldest. Raises: LakeError as `entries`."""
        found = entry if entry is not None else self.newest()
        while found is not None:
            yield found
            if found.sequence == 1:
                return
            before = self.read(found.sequence - 1)
            if before.digest != found.predecessor:
                raise self._broken_chain(found.sequence)
            found = before

    def tables(self, entry: LogEntry) -> Iterator[TableState]:
        """The state of every table and account of the entry, in order, each read when it is its turn."""
        for table, account in sorted(entry.tables):
            yield self.state_of(entry, table, account)

    def state_of(self, entry: LogEntry, table: str, account: str) -> TableState:
        """The state of one table. Raises: KeyError if the entry has none; LakeError if a list is damaged."""
        reference = entry.tables[table, account]
        near = entry.sequence
        content = self.read_list(reference.digest, near)
        columns = cast(list[Mapping[str, object]], self.read_list(str(content["columns"]), near)["columns"])
        files = tuple(_file_of(path, value) for path, value in self.items(content["files"], near))
        self._files_read[reference.digest] = files
        while len(self._files_read) > _FILES_READ:
            self._files_read.popitem(last=False)
        return TableState(
            table=table,
            account=account,
            sync=reference.sync,
            status=reference.status,
            reason=reference.reason,
            rows=reference.rows,
            files=files,
            columns=tuple(columns),
            state=dict(self.items(content["state"], near)),
            run_id=reference.run_id,
            proved_by=reference.proved_by,
            snapshot_at=reference.snapshot_at,
            content=reference.content,
        )

    def files_read(self, digest: str) -> tuple[DataFile, ...]:
        """The files of a table as `state_of` gave them, if it did lately; else none."""
        return self._files_read.get(digest, ())

    def paths_since(self, reference: TableRef, earlier: TableRef | None, near: int) -> set[str]:
        """The paths in the pieces of a table's list of files that are not those of an earlier one."""
        part = self.read_list(reference.digest, near)["files"]
        _, leaves = self.nodes(part)
        if earlier is not None and leaves:
            leaves -= self.nodes(self.read_list(earlier.digest, near)["files"])[1]
        return self.keys(part, leaves)

    def replacements(self, entry: LogEntry) -> Mapping[str, tuple[str, ...]]:
        """The paths of the files that `entry` removed, each with those that hold its rows now."""
        if not entry.replaced:
            return {}
        content = self.read_list(entry.replaced, entry.sequence)
        found = cast(Mapping[str, Sequence[str]], content["replaced"])
        return {path: tuple(paths) for path, paths in found.items()}

    def replacing_files(self, entry: LogEntry) -> Mapping[str, DataFile]:
        """The files that hold the rows of those that `entry` removed, by path."""
        if not entry.replaced:
            return {}
        content = self.read_list(entry.replaced, entry.sequence)
        return {
            path: _file_of(path, value) for path, value in map(pair_of, cast(list[object], content["files"]))
        }

    def lists_of(self, reference: TableRef) -> frozenset[str]:
        """The digests of every list that a table's state consists of: to be kept while an entry has it."""
        content = self.read_list(reference.digest)
        digests = {reference.digest, str(content["columns"])}
        for part in (content["files"], content["state"]):
            inner, leaves = self.nodes(part)
            digests |= inner | leaves
        return frozenset(digests)

    def lists_of_entry(self, entry: LogEntry, seen: set[str]) -> set[str]:
        """The digests of every list that an entry needs; those of tables in `seen` are left out, and put there."""
        digests = {digest for digest in (entry.base, entry.replaced) if digest}
        for reference in entry.tables.values():
            if reference.digest not in seen:
                seen.add(reference.digest)
                digests |= self.lists_of(reference)
        return digests

    def check_numbers(self) -> int:
        """The number of the newest entry, 0 if there is none. Raises: LakeError if an earlier one is
        missing.
        """
        numbers = [
            int(stem)
            for stored in self._store.list(_LOG)
            if (stem := stored.path.rpartition("/")[2].removesuffix(".json")).isdecimal()
        ]
        newest = max(numbers, default=0)
        # What is folded and what is about to be removed for it may both be there.
        folded = set(self.folds.numbers())
        for missing in _gaps(numbers, folded):
            # A listing that ran beside two commits may show the second without the first.
            if self._content(missing) is None:
                raise self._missing_number(missing)
        return max(newest, max(folded, default=0))

    def digest_of(self, sequence: int) -> str:
        """SHA-256 of the entry's bytes, empty if there is no such entry."""
        content = self._content(sequence)
        return "" if content is None else sha256(content)

    def read_list(self, digest: str, near: int = 0) -> Mapping[str, object]:
        """The content of a list; `near` is the number of an entry that refers to it, if that may be an old one.

        Raises: LakeError if it is missing or is not what its name says.
        """
        path = list_path(digest)
        try:
            content = self._store.read(path)
        except StoreMissing:
            folded = self.folds.content(digest, near)
            if folded is None:
                raise
            content = folded
        if sha256(content) != digest:
            raise LakeError(
                f"{path} in lake {self._store.uri} was changed after it was written; "
                "restore it from a copy of the lake"
            )
        return cast(Mapping[str, object], orjson.loads(content))

    def write_list(self, content: Mapping[str, object]) -> str:
        """The digest under which the list now can be read."""
        return self.write_content(encoded(content))

    def write_content(self, content: bytes) -> str:
        digest = sha256(content)
        if not self._store.put_if_absent(list_path(digest), content):
            # Renewed, so that by its age it is not taken for one that nobody refers to.
            self._store.put(list_path(digest), content)
        return digest

    def _newest_number(self) -> int:
        number = self._hinted_number()
        if number == 0 or not self._store.exists(entry_path(number)):
            return self.check_numbers()
        for _ in range(_PROBES):
            if self._store.exists(entry_path(number + 1)):
                number += 1
            elif not self._store.exists(entry_path(number + 2)):
                return number
            elif not self._store.exists(entry_path(number + 1)):
                raise self._missing_number(number + 1)
        return self.check_numbers()

    def _hinted_number(self) -> int:
        sequence = read_hint(self._store).get("sequence")
        return sequence if isinstance(sequence, int) and sequence > 0 else 0

    def _content(self, sequence: int) -> bytes | None:
        try:
            return self._store.read(entry_path(sequence))
        except StoreMissing:
            return self.folds.entry(sequence)

    def items(self, part: object, near: int = 0) -> Iterator[tuple[str, object]]:
        content = cast(Mapping[str, object], part)
        if "recent" in content:
            older = {key: value for key, value in content.items() if key != "recent"}
            yield from sorted([*self.items(older, near), *recent_items(content)], key=lambda item: item[0])
            return
        if "tree" in content:
            content = self.read_list(str(content["tree"]), near)
        if "items" in content:
            yield from map(pair_of, cast(list[object], content["items"]))
            return
        for digest in cast(list[str], content["children"]):
            yield from self.items({"tree": digest}, near)

    def nodes(self, part: object) -> tuple[frozenset[str], frozenset[str]]:
        """Digests of the inner pieces and of the leaves of a list; reads the inner ones only."""
        content = cast(Mapping[str, object], part)
        if "tree" not in content:
            return frozenset(), frozenset()
        inner: set[str] = set()
        level = [str(content["tree"])]
        for _ in range(int(cast(int, content["height"]))):
            inner.update(level)
            level = [child for node in level for child in cast(list[str], self.read_list(node)["children"])]
        return frozenset(inner), frozenset(level)

    def keys(self, part: object, leaves: Iterable[str]) -> set[str]:
        """The keys that stand in these leaves of a list; all of them where the list is one piece."""
        if "tree" not in cast(Mapping[str, object], part):
            return {key for key, _ in self.items(part)}
        recent = {key for key, _ in recent_items(part)}
        return recent.union(key for leaf in leaves for key, _ in self.items({"tree": leaf}))

    def _missing_number(self, sequence: int) -> LakeError:
        return LakeError(
            f"log entry {sequence} is missing in lake {self._store.uri}; "
            f"restore {entry_path(sequence)} from a copy of the lake"
        )

    def _broken_chain(self, sequence: int) -> LakeError:
        if not self.digest_of(sequence - 1):
            return self._missing_number(sequence - 1)
        return LakeError(
            f"log entry {sequence} in lake {self._store.uri} was not built on entry {sequence - 1} as it is; "
            "one of them was changed or replaced: restore both from one copy of the lake"
        )


def encode_entry(entry: LogEntry, base: Mapping[TableKey, TableRef]) -> bytes:
    """The bytes of an entry: JSON with sorted keys, and a checksum over the rest of it."""
    apart = {key: reference for key, reference in entry.tables.items() if base.get(key) != reference}
    body = {
        "format_version": entry.format_version,
        "sequence": entry.sequence,
        "run_id": entry.run_id,
        "run_part": entry.run_part,
        "is_final": entry.is_final,
        "status": entry.status,
        "started_at": time_text(entry.started_at),
        "committed_at": time_text(entry.committed_at),
        "tables": nested(apart),
        "base": entry.base,
        "graces": entry.graces,
        "publishing": entry.publishing,
        "replaced": entry.replaced,
        "summary": entry.summary,
        "source": entry.source,
        "predecessor": entry.predecessor,
    }
    # Through JSON once, so that the checksum is over what a reader will get.
    body = orjson.loads(encoded(body))
    return encoded({**body, "checksum": sha256(encoded(body))})


def _decode_entry(
    content: bytes, *, sequence: int, lake: str, base_of: Callable[[str], Mapping[TableKey, TableRef]]
) -> LogEntry:
    """The entry in these bytes. Raises: LakeError if this program did not write them, or a newer one did."""
    path = entry_path(sequence)
    try:
        body = orjson.loads(content)
        version = body["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise LakeError(
                f"{path} in lake {lake} has format {version}, this version reads up to {FORMAT_VERSION}; "
                "upgrade skysql-extractor"
            )
        checksum = body.pop("checksum")
        if checksum != sha256(encoded(body)) or body["sequence"] != sequence:
            raise ValueError("checksum")
        return LogEntry(
            sequence=sequence,
            run_id=body["run_id"],
            run_part=body["run_part"],
            is_final=body["is_final"],
            status=body["status"],
            started_at=datetime.fromisoformat(body["started_at"]),
            committed_at=datetime.fromisoformat(body["committed_at"]),
            tables={**base_of(body["base"]), **_flat(body["tables"])},
            base=body["base"],
            graces={number: (until, path) for number, (until, path) in body["graces"].items()},
            publishing={run_id: tuple(sequences) for run_id, sequences in body["publishing"].items()},
            replaced=body["replaced"],
            summary=body["summary"],
            source=body["source"],
            predecessor=body["predecessor"],
            format_version=version,
            digest=sha256(content),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LakeError(
            f"{path} in lake {lake} is damaged or was changed by hand; restore it from a copy of the lake"
        ) from error


def nested(tables: Mapping[TableKey, TableRef]) -> Mapping[str, object]:
    nested: dict[str, dict[str, object]] = {}
    for (table, account), reference in tables.items():
        nested.setdefault(table, {})[account] = reference
    return nested


def _flat(nested: object) -> dict[TableKey, TableRef]:
    return {
        (table, account): TableRef(**reference)
        for table, accounts in cast(dict[str, dict[str, dict[str, Any]]], nested).items()
        for account, reference in accounts.items()
    }


def read_hint(store: Store) -> Mapping[str, object]:
    """What `latest.json` says; empty if there is none or it makes no sense."""
    try:
        content = orjson.loads(store.read(LATEST))
    except (StoreMissing, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _gaps(numbers: Collection[int], folded: Collection[int]) -> list[int]:
    """The numbers that are missing before the newest one, unless a fold has them."""
    newest = max((*numbers, *folded), default=0)
    there = frozenset(numbers)
    return [
        number
        for end in range(FOLD_ENTRIES, newest + FOLD_ENTRIES, FOLD_ENTRIES)
        if end not in folded
        for number in range(end - FOLD_ENTRIES + 1, min(end, newest) + 1)
        if number not in there
    ]


def file_value(file: DataFile) -> Mapping[str, object]:
    return {
        "rows": file.rows,
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "partition": file.partition,
        "content": file.content,
        **({"is_apart": True} if file.is_apart else {}),
    }


def _file_of(path: str, value: object) -> DataFile:
    from extractor.write import DataFile

    content = cast(Mapping[str, object], value)
    return DataFile(
        path=path,
        rows=cast(int, content["rows"]),
        size_bytes=cast(int, content["size_bytes"]),
        sha256=str(content["sha256"]),
        partition=tuple((key, item) for key, item in cast(list[list[str]], content["partition"])),
        content=str(content["content"]),
        is_apart=bool(content.get("is_apart")),
    )


def entry_path(sequence: int) -> str:
    return f"{_LOG}/{sequence:020d}.json"


def list_path(digest: str) -> str:
    return f"{_LISTS}/{digest}.json"


def time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
