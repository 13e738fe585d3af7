"""Log archives: one file for each server, kind of log and day, and the rows that a reader finds in it."""

from __future__ import annotations

import weakref
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

import orjson

from extractor.digest import format_time
from extractor.sandbox.chance import Scramble
from extractor.sandbox.rows import Ragged, Row, Rows
from extractor.sandbox.world import ON_PREMISES_ID, SHAPES, Server, World

__all__ = (
    "SPOOL_BYTES",
    "Archive",
    "Bundle",
    "archive_list",
    "archive_of",
    "archive_ordinals",
    "buckets",
    "log_rows",
    "log_types",
    "servers",
)

_TYPES = (
    ("error-log", "Error log"),
    ("maxscale-log", "MaxScale Log"),
    ("audit-log", "Audit log"),
    ("slow-query-log", "Slow query log"),
)
_OF_KIND = {"server": ("error-log", "audit-log", "slow-query-log"), "maxscale": ("maxscale-log",)}
_NODES = tuple((nodes, proxies) for _, nodes, proxies in SHAPES)
_ID_MODULUS = 1 << 40
_DAY_SECONDS = 86_400
# Archives are numbered for so many days from the anchor on where time passes, so that none changes its id.
_HORIZON_DAYS = 800
SPOOL_BYTES = 8 << 20
_PIECE_BYTES = 1 << 16


class _Line(NamedTuple):
    """A line as written; `starts` says that it begins an entry."""

    text: str | bytes
    starts: bool = False
    stamp: datetime | None = None
    nanos: int | None = None
    level: str | None = None
    stream: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One archive file; `lines` is how many it holds now."""

    index: int
    id: str
    name: str
    log_type: str
    server: Server
    day: datetime
    lines: int
    is_broken: bool  # one of its lines is not UTF-8


_Grammar = Callable[[World, Archive], Iterator[_Line]]


def archive_list(world: World) -> Rows:
    """The list rows of all archives."""

    def fresh(number: int) -> Row:
        row = _list_row(world, 0)
        return {**row, "id": f"inserted{number:03d}", "name": f"inserted_{number}_{row['name']}"}

    def make() -> Rows:
        count = _count(world)
        return world.rows(count, lambda index: _list_row(world, index), fresh if count else None)

    return world.kept("archives", make)


def archive_ordinals(
    world: World, since: datetime | None, until: datetime | None, services: Sequence[str] | None
) -> Sequence[int]:
    """The archives that start in a span of time, both ends included, of services by id, or of all."""
    rows = archive_list(world)
    if since is None and until is None and services is None and not world.options.changes:
        return rows.ordinals()
    blocks = [range(rows.count)] if services is None else [_block(world, service) for service in services]
    # An archive's index modulo the number of days says how many days ago it began.
    days = _days(world)
    kept = {back for back in range(days) if _is_between(_day_of(world, back), since, until)}
    kept &= set(_days_begun(world))
    # Those that came in are copies of the first.
    has_inserted = bool(rows.inserted) and services is None and _is_between(_day_of(world, 0), since, until)
    inserted = range(-len(rows.inserted) if has_inserted else 0, 0)
    if len(kept) == days and len(blocks) == 1 and not inserted:
        return blocks[0]
    return [*inserted, *(index for block in blocks for index in block if index % days in kept)]


def archive_of(world: World, log_id: str) -> Archive | None:
    """The archive of an id; one inserted later has no lines; None where there is none."""
    inserted = archive_list(world).find_inserted("id", log_id)
    if inserted is not None:
        first = _archive(world, 0)
        name = str(archive_list(world).row(inserted)["name"])
        return Archive(
            index=-1,
            id=log_id,
            name=name,
            log_type=first.log_type,
            server=first.server,
            day=first.day,
            lines=0,
            is_broken=False,
        )
    try:
        index = _ids(world).back(int(log_id, 16))
    except ValueError:
        return None
    if index >= _count(world) or _log_id(world, index) != log_id:
        return None
    archive = _archive(world, index)
    return archive if archive.lines or not world.options.changes else None


def log_rows(world: World) -> Iterator[Row]:
    """The lines of all archives as rows."""
    for index in archive_ordinals(world, None, None, None):
        if index >= 0:
            yield from _rows_of(_archive(world, index), world)


def log_types() -> list[Row]:
    """Kinds of logs."""
    return [{"id": str(n), "name": name, "type": kind} for n, (kind, name) in enumerate(_TYPES, 1)]


def servers(world: World) -> Iterator[Row]:
    """Servers that have logs, with the kinds of log that each has."""
    for index in range(world.server_count):
        server = world.server(index)
        yield {"server": server.name, "serverDataSourceId": server.source_id, "service": server.service_name}


def buckets(world: World) -> list[Row]:
    """Where the logs of the organization are kept."""
    places = (("gcp", "EU", 11), ("gcp", "US", 30), ("aws", "us-east-1", 2555))
    return [
        {
            "bucket_name": f"{world.org}-{region.lower()}-skylog",
            "provider": provider,
            "region": region,
            "retention_policy_days": days,
            "tenant_id": world.org,
        }
        for provider, region, days in places
    ]


class Bundle:
    """A ZIP in memory or, when large, in a file without a name, closed when nobody holds the bundle."""

    def __init__(self) -> None:
        self._spool: IO[bytes] = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
        # A request may be cancelled at any point between the making of the file and its last piece.
        weakref.finalize(self, self._spool.close)

    @property
    def size_bytes(self) -> int:
        """How long the ZIP is."""
        return self._spool.seek(0, 2)

    def write(self, world: World, archives: Sequence[Archive], *, is_json: bool) -> Bundle:
        """Write a folder entry and a member for each archive; gives the bundle itself."""
        with zipfile.ZipFile(self._spool, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle:
            bundle.writestr(zipfile.ZipInfo("logs/", _member_time(world.anchor)), b"")
            for archive in archives:
                member = zipfile.ZipInfo(archive.name, _member_time(archive.day))
                member.compress_type = zipfile.ZIP_DEFLATED
                with bundle.open(member, "w", force_zip64=archive.lines > 10_000_000) as target:
                    _write_member(world, archive, target, is_json=is_json)
        return self

    def read(self) -> bytes:
        """The whole ZIP."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The ZIP in pieces of 64 kB."""
        self._spool.seek(0)
        while block := self._spool.read(_PIECE_BYTES):
            yield block


def _write_member(world: World, archive: Archive, target: IO[bytes], *, is_json: bool) -> None:
    lines = _lines(world, archive)
    # A file that is not UTF-8 cannot be JSON: the API hands it out as it is.
    is_wrapped = is_json and not archive.is_broken
    while block := [line.text for line in islice(lines, 2000)]:
        if is_wrapped:
            target.write(b"".join(orjson.dumps({"log": text}) + b"\n" for text in block))
        else:
            target.write(
                b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in block)
            )


def _rows_of(archive: Archive, world: World) -> Iterator[Row]:
    entry: int | None = None
    for number, line in enumerate(_lines(world, archive), 1):
        if line.starts:
            entry = number
        is_text = isinstance(line.text, str)
        yield {
            "log_id": archive.id,
            "member": archive.name,
            "line_number": number,
            "entry": number if entry is None else entry,
            "line": line.text if is_text else None,
            "line_bytes": None if is_text else line.text,
            "timestamp": None if line.stamp is None else format_time(line.stamp, line.nanos or 0),
            "level": line.level,
            "stream": line.stream,
        }


def _member_time(day: datetime) -> tuple[int, int, int, int, int, int]:
    return (day.year, day.month, day.day, 0, 0, 0)


def _days(world: World) -> int:
    later = _HORIZON_DAYS if world.options.changes else 0
    return world.options.log_days + ("growing-archive" in world.options.variants) + later


def _days_begun(world: World) -> range:
    """The days, counted back from the last, whose archives have a line by now."""
    days = _days(world)
    if not world.options.changes:
        return range(days)
    begun = next((back for back in range(days) if _lines_until_now(world, _day_of(world, back))), days)
    return range(begun, days)


def _lines_until_now(world: World, day: datetime) -> int:
    """How many lines an archive has where time passes: nine of ten come on its day, the rest in two days more."""
    total = world.options.log_lines
    prompt = total - total // 10
    age = int((world.anchor - day).total_seconds()) + world.elapsed
    late = max(0, min(age - _DAY_SECONDS, 2 * _DAY_SECONDS))
    on_time = prompt * max(0, min(age, _DAY_SECONDS)) // _DAY_SECONDS
    return on_time + (total - prompt) * late // (2 * _DAY_SECONDS)


def _day_of(world: World, back: int) -> datetime:
    if world.options.changes:
        return world.anchor + timedelta(days=_HORIZON_DAYS - 1 - back)
    has_today = "growing-archive" in world.options.variants
    return world.anchor - timedelta(days=back + (not has_today))


def _is_between(moment: datetime, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or moment >= since) and (until is None or moment <= until)


def _block(world: World, service_id: str) -> range:
    """The indices of the archives of one service."""
    shape = _shape(world)
    if service_id == ON_PREMISES_ID:
        return range(shape.start(world.services.count), _count(world))
    index = world.service_index(service_id)
    if index is None or index >= world.services.count:
        return range(0)
    start = shape.start(index)
    return range(start, start + shape.size(index))


def _shape(world: World) -> Ragged:
    days = _days(world)
    return Ragged(*((nodes * 3 + proxies) * days for nodes, proxies in _NODES))


def _count(world: World) -> int:
    on_premises = 2 * 3 * _days(world)
    return _shape(world).start(world.services.count) + on_premises if _days(world) else 0


def _ids(world: World) -> Scramble:
    return Scramble(0x9E3779B1, _ID_MODULUS, world.chance.bits("log id", 0))


def _log_id(world: World, index: int) -> str:
    return f"{_ids(world).forward(index):010x}"


def _place(world: World, index: int) -> tuple[Server, str, int]:
    """Server, kind of log, and how many days ago."""
    days = _days(world)
    shape = _shape(world)
    cloud = shape.start(world.services.count)
    if index >= cloud:
        kind, back = divmod(index - cloud, days)
        server = world.server(world.server_count - 2 + kind // 3)
        return server, _OF_KIND["server"][kind % 3], back
    parent, child = shape.locate(index)
    kind, back = divmod(child, days)
    nodes, _ = _NODES[parent % len(_NODES)]
    first = world.server_shape.start(parent)
    if kind < nodes * 3:
        return world.server(first + kind // 3), _OF_KIND["server"][kind % 3], back
    return world.server(first + nodes + kind - nodes * 3), "maxscale-log", back


def _archive(world: World, index: int) -> Archive:
    server, log_type, back = _place(world, index)
    has_today = "growing-archive" in world.options.variants and not world.options.changes
    day = _day_of(world, back)
    is_growing = has_today and back == 0
    lines = min(world.options.log_lines, 5 + world.archive_growth) if is_growing else world.options.log_lines
    if world.options.changes:
        lines = _lines_until_now(world, day)
    name = f"{server.service_name}_{server.service_id}_{server.name}_{log_type}_{day:%Y-%m-%d}.log"
    is_broken = server.index == 0 and log_type == "audit-log" and back == _days(world) - 1
    return Archive(
        index=index,
        id=_log_id(world, index),
        name=name,
        log_type=log_type,
        server=server,
        day=day,
        lines=lines,
        is_broken=is_broken and lines > 1,
    )


def _list_row(world: World, index: int) -> Row:
    archive = _archive(world, index)
    return {
        "id": archive.id,
        "name": archive.name,
        "logType": archive.log_type,
        "server": archive.server.name,
        "service": archive.server.service_name,
        "serverDataSourceId": archive.server.source_id,
        "size": archive.lines * 110 + world.chance.bits("log size", index) % 100,
        "startTime": f"{archive.day:%Y-%m-%dT%H:%M:%SZ}",
    }


def _lines(world: World, archive: Archive) -> Iterator[_Line]:
    grammar: _Grammar = _GRAMMARS[archive.log_type]
    if archive.log_type == "error-log" and archive.server.topology is None:
        grammar = _plain_error_log
    return islice(grammar(world, archive), archive.lines)


def _moments(world: World, archive: Archive) -> Iterator[tuple[int, datetime, int]]:
    """Number, time and random bits of one entry after the other, over the day."""
    pace = _DAY_SECONDS / max(1, world.options.log_lines + 1)
    number = 0
    while True:
        bits = world.chance.bits("log line", (archive.index << 24) + number)
        yield number, archive.day + timedelta(seconds=int(number * pace) % _DAY_SECONDS), bits
        number += 1


_MESSAGES = (
    ("Note", "InnoDB: Buffer pool(s) load completed"),
    ("Warning", "Access denied for user 'nobody'@'localhost' (using password: YES)"),
    ("ERROR", "Slave SQL: Could not execute Write_rows_v1 event on table shop.orders; Duplicate entry"),
    ("Note", "Server socket created on IP: '127.0.0.1', port: '3306'."),
    ("Note", "mariadbd: ready for connections, zażółć gęślą jaźń"),
)


def _error_log(world: World, archive: Archive) -> Iterator[_Line]:
    for number, moment, bits in _moments(world, archive):
        stamp, nanos, prefix = _prefix(moment, bits, "stderr" if bits % 3 else "stdout")
        stream = "stderr" if bits % 3 else "stdout"
        if number % 13 == 12:
            plain = f"{moment:%y%m%d} {moment.hour:2d}:{moment:%M:%S} server_audit: logging started"
            yield _Line(f"{prefix}{plain}", True, stamp, nanos, None, stream)
            continue
        level, message = _MESSAGES[bits % 5]
        text = f"{prefix}{moment:%Y-%m-%d %H:%M:%S} {bits % 900} [{level}] {message}"
        yield _Line(text, True, stamp, nanos, level, stream)
        if number % 11 == 10:
            yield _Line(
                "Version: '10.6.22-18-MariaDB-enterprise-log'  socket: '/run/mysqld/mysqld.sock'  port: 3306"
            )


def _plain_error_log(world: World, archive: Archive) -> Iterator[_Line]:
    for number, moment, bits in _moments(world, archive):
        if number % 7 == 3:
            plain = f"{moment:%y%m%d} {moment.hour:2d}:{moment:%M:%S} server_audit: Query cache is enabled"
            yield _Line(plain, True, moment)
            continue
        level, message = _MESSAGES[bits % 5]
        yield _Line(f"{moment:%Y-%m-%d %H:%M:%S} {bits % 900} [{level}] {message}", True, moment, None, level)
        if number % 5 == 4:
            yield _Line(
                "Version: '10.11.13-MariaDB-log'  socket: '/run/mysqld/mysqld.sock'  port: 3306  Debian 12"
            )


def _maxscale_log(world: World, archive: Archive) -> Iterator[_Line]:
    levels = ("error", "notice", "warning")
    for number, moment, bits in _moments(world, archive):
        stamp, nanos, prefix = _prefix(moment, bits, "stdout")
        level = levels[bits % 3]
        text = (
            f"{prefix}{moment:%Y-%m-%d %H:%M:%S}   {level:<7}: ({bits % 99}) [mariadbmon] Unable to connect"
        )
        yield _Line(text, True, stamp, nanos, level, "stdout")
        if number % 9 == 8:
            yield _Line("    at router session 17")


def _audit_log(world: World, archive: Archive) -> Iterator[_Line]:
    host = archive.server.name
    for number, moment, bits in _moments(world, archive):
        start = f"{moment:%Y%m%d %H:%M:%S},{host},app,10.0.{bits % 250}.7,{bits % 9999},{number}"
        if number % 17:
            query = ("select 1", "insert into orders(note) values(\\'a,b\\')", "select \u2028 'zażółć'")[
                bits % 3
            ]
            yield _Line(f"{start},QUERY,shop,'{query}',0", True, moment)
            continue
        yield _Line(f"{start},QUERY,shop,'select *", True, moment)
        if number == 0 and archive.is_broken:
            yield _Line(b"  from orders where note = \\'za\xbf\xf3\xb3\xe6\\'',0")
        else:
            yield _Line("  from orders where note = \\'zażółć\\'',0")


def _slow_log(world: World, archive: Archive) -> Iterator[_Line]:
    yield _Line("mariadbd, Version: 10.6.22-18-MariaDB-enterprise-log. started with:")
    yield _Line("Tcp port: 3306  Unix socket: /run/mysqld/mysqld.sock")
    yield _Line("Time\t\t    Id Command\tArgument")
    for number, moment, bits in _moments(world, archive):
        # The server writes the time only when the second changed.
        has_time = number % 3 != 2
        if has_time:
            yield _Line(f"# Time: {moment:%y%m%d} {moment.hour:2d}:{moment:%M:%S}", True, moment)
        yield _Line(f"# User@Host: app[app] @  [10.0.0.{bits % 250}]", not has_time)
        yield _Line(f"# Thread_id: {bits % 9999}  Schema: shop  QC_hit: No")
        yield _Line(
            f"# Query_time: {bits % 9000 / 1000:.6f}  Lock_time: 0.000089  Rows_examined: {bits % 77}"
        )
        yield _Line("# Rows_affected: 0  Bytes_sent: 66")
        if number % 4 == 0:
            yield _Line("use `shop`;")
        yield _Line(f"SET timestamp={int(moment.timestamp())};")
        yield _Line("select note, sum(amount)")
        yield _Line("  from orders where note like 'zażółć%' group by 1;")


def _prefix(moment: datetime, bits: int, stream: str) -> tuple[datetime, int, str]:
    """The prefix of a container's log line: time to the microsecond, what is beyond, and the text."""
    nanos = bits >> 9 & 0x1FFFFFFF
    nanos = nanos if bits & 7 else nanos // 1000 * 1000
    fraction = f"{nanos:09d}".rstrip("0")
    text = f"{moment:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}Z {stream} F "
    return moment.replace(microsecond=nanos // 1000), nanos % 1000, text


_GRAMMARS: dict[str, _Grammar] = {
    "error-log": _error_log,
    "maxscale-log": _maxscale_log,
    "audit-log": _audit_log,
    "slow-query-log": _slow_log,
}
