"""One scrape of all servers as OpenMetrics-like text, made chunk by chunk; every reading gives the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from extractor.sandbox.rows import Row
from extractor.sandbox.world import Server, World

__all__ = ("Sample", "chunks", "samples", "scraped", "select", "truth")

_CHUNK_CHARACTERS = 1 << 16
_LONGEST_LAG_MS = 54_000
_UNLIMITED = 1 << 62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STATES = ("data", "dirty", "flushed", "free", "misc", "old")
_HANDLERS = (
    "commit delete discover external_lock icp_attempts icp_match mrr_init prepare read_first read_key "
    "read_last read_next read_prev read_retry read_rnd rollback update write"
).split()
_COMMANDS = (
    "admin_commands alter_db alter_table analyze begin call_procedure change_db checksum commit create_db "
    "create_index create_table create_user create_view delete delete_multi drop_db drop_index drop_table "
    "empty_query execute_sql flush grant insert insert_select kill load lock_tables optimize prepare_sql "
    "purge release_savepoint rename_table repair replace revoke rollback savepoint select set_option "
    "show_binlogs show_databases show_fields show_grants show_keys show_processlist show_status show_tables "
    "show_variables truncate unlock_tables update"
).split()
_STATUS = (
    "aborted_connects binlog_cache_disk_use bytes_received bytes_sent connections created_tmp_disk_tables "
    "created_tmp_files created_tmp_tables innodb_data_reads innodb_data_writes innodb_log_waits "
    "innodb_row_lock_time innodb_row_lock_waits key_blocks_used key_read_requests max_used_connections "
    "open_files open_tables opened_tables queries questions select_full_join select_scan slow_queries "
    "sort_merge_passes sort_rows table_locks_immediate table_locks_waited threads_connected threads_created "
    "threads_running uptime"
).split()
_BUILDS = ('Rocky "Blue" build', "path C:\\bin", "two\nlines", "plain")


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric family of one kind of server: `labels` gives the extra labels of its n-th series there."""

    name: str
    type: str
    kind: str
    count: int
    labels: Callable[[int], tuple[tuple[str, str], ...]]
    value: str


@dataclass(frozen=True, slots=True)
class _Target:
    """A server of the scrape and what all its samples share."""

    index: int
    server: Server
    quota: int
    head: str
    tail: str
    stamp_ms: int
    minute: int  # of its samples; 0 where time does not pass


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: `value` is the text of the exposition."""

    name: str
    type: str
    server: Server
    labels: tuple[tuple[str, str], ...]
    value: str
    stamp_ms: int


def chunks(world: World, service: str | None = None) -> Iterator[bytes]:
    """The text of a scrape, of one service by its name or of all, in pieces of about 64 kB."""
    variants = world.options.variants
    sign = "#TYPE" if "metrics-space" in variants else "# TYPE"
    is_doubled = "duplicate-samples" in variants
    parts: list[str] = []
    size = written = 0
    for family, targets, offset in _walk(world, service):
        parts.append(f"{sign} {family.name} {family.type}\n")
        for target in targets:
            for line in _lines(world, family, target, offset):
                parts.append(line)
                size += len(line)
                written += 1
                if is_doubled and written % 10 == 0:
                    parts.append(line)
                if size >= _CHUNK_CHARACTERS:
                    yield "".join(parts).encode()
                    parts.clear()
                    size = 0
        parts.append("\n")
    if parts:
        yield "".join(parts).encode()


def samples(world: World, service: str | None = None, *, minute: int | None = None) -> Iterator[Sample]:
    """The samples of a scrape, each once."""
    for family, targets, offset in _walk(world, service, minute):
        for target in targets:
            for number in range(min(family.count, target.quota - offset)):
                value = _value(world, family, target.index + target.minute, number)
                yield Sample(
                    family.name, family.type, target.server, family.labels(number), value, target.stamp_ms
                )


def scraped(world: World) -> Iterator[Row]:
    """The samples of every scrape that was made, each once; where time does not pass, those of the one there is."""
    known: set[tuple[str, int, tuple[tuple[str, str], ...], int]] = set()
    for minute in sorted(world.scraped) or [world.minute]:
        for row, sample in zip(truth(world, minute), samples(world, minute=minute), strict=True):
            identity = (sample.name, sample.server.index, sample.labels, sample.stamp_ms)
            if identity not in known:
                known.add(identity)
                yield row


def truth(world: World, minute: int | None = None) -> Iterator[Row]:
    """The samples of a minute, by default the present one, as rows."""
    for sample in samples(world, minute=minute):
        server = sample.server
        yield {
            "name": sample.name,
            "type": sample.type,
            "namespace": f"db.{server.service_name}",
            "server_name": server.name,
            "server_type": server.kind,
            "service_name": server.service_name,
            "topology_type": server.topology,
            "labels": dict(sorted(sample.labels)),
            "value": float(sample.value),
            "timestamp": _EPOCH + timedelta(milliseconds=sample.stamp_ms),
        }


_SELECTOR = re.compile(r"\s*([A-Za-z_:][A-Za-z0-9_:]*)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_MATCHER = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*"([^"]*)"\s*(?:,|$)')


def select(world: World, query: str) -> list[Sample] | None:
    """At most 500 samples that a PromQL selector names; None where the query is anything more.

    The label `mariadb` stands for the service name, as it does in the history that the API keeps.
    """
    found = _SELECTOR.fullmatch(query)
    if found is None:
        return None
    name, matchers = found[1], dict(_MATCHER.findall(found[2] or ""))
    chosen: list[Sample] = []
    for sample in samples(world, matchers.pop("mariadb", None)):
        labels = {
            **dict(sample.labels),
            "server_name": sample.server.name,
            "service_name": sample.server.service_name,
        }
        if sample.name == name and matchers.items() <= labels.items():
            chosen.append(sample)
        if len(chosen) == 500:
            break
    return chosen


def _walk(
    world: World, service: str | None, minute: int | None = None
) -> Iterator[tuple[_Family, list[_Target], int]]:
    at = world.minute if minute is None else minute
    targets = [target for target in _targets(world, at) if service in (None, target.server.service_name)]
    for kind, families in _FAMILIES.items():
        offset = 0
        living = [target for target in targets if target.server.kind == kind]
        for family in families:
            living = [target for target in living if target.quota > offset]
            if not living:
                break
            yield family, living, offset
            offset += family.count


def _targets(world: World, at: int) -> Iterator[_Target]:
    count = world.options.series
    total = world.server_count
    # Each server of the scrape has about ten series or more, so that a huge organization stays small here.
    used = min(total, max(1, count // 10))
    on_premises = range(total - 2, total)
    for place, index in zip(range(used), (*on_premises, *range(used)), strict=False):
        server = world.server(index)
        head = (
            f'{{namespace="db.{server.service_name}", server_name="{server.name}", '
            f'server_type="{server.kind}", service_name="{server.service_name}"'
        )
        # What is read of servers on premises is five minutes old at worst, so that scrapes overlap.
        minute = at - at % 5 if index >= total - 2 else at
        present = minute * 60 if minute else world.anchor_epoch
        yield _Target(
            index=index,
            minute=minute,
            server=server,
            quota=count // used + (place < count % used),
            head=head,
            tail=f', topology_type="{server.topology}"}} ' if server.topology else "} ",
            stamp_ms=present * 1000 - 1000 - world.chance.bits("scrape", index) % _LONGEST_LAG_MS,
        )


def _lines(world: World, family: _Family, target: _Target, offset: int) -> Iterator[str]:
    start = family.name + target.head
    end = f" {target.stamp_ms}\n"
    for number in range(min(family.count, target.quota - offset)):
        labels = "".join(f', {key}="{_escape(text)}"' for key, text in family.labels(number))
        yield start + labels + target.tail + _value(world, family, target.index + target.minute, number) + end


def _escape(text: str) -> str:
    if text.isalnum():
        return text
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(world: World, family: _Family, server: int, number: int) -> str:
    bits = (
        server * 1_000_003 + number * 104_729 + len(family.name) * 7919 + world.options.seed
    ) * 2_654_435_761
    bits = bits >> 7 & 0xFFFFFFFF
    match family.value:
        case "nan" if server % 3 == 0:
            return "NaN"
        case "inf" if (server + number) % 4 == 1:
            return "+Inf"
        case "inf" | "exponent":
            return f"{bits * 977:.6e}"
        case "small":
            return f"{bits / 1e13:.3e}"
        case "ratio" | "nan":
            return f"{bits / 65536:.3f}"
        case _:
            return str(bits)


def _no_labels(number: int) -> tuple[tuple[str, str], ...]:
    return ()


def _named(label: str, *names: str) -> Callable[[int], tuple[tuple[str, str], ...]]:
    pairs = tuple(((label, name),) for name in names)
    return pairs.__getitem__


def _build(number: int) -> tuple[tuple[str, str], ...]:
    return (("comment", _BUILDS[number]),)


def _table(number: int) -> tuple[tuple[str, str], ...]:
    name = f"table_{number:06d}"
    return (("schema", "shop"), ("table", f'odd "{name}" \\' if number % 97 == 5 else name))


def _module(number: int) -> tuple[tuple[str, str], ...]:
    name = ("readwritesplit", "readconnroute", "mariadbmon", "nosqlprotocol")[number]
    return (("module_name", name), ("module_type", "Router"), ("version", f"V{number}.0.0"))


def _numbered(number: int) -> tuple[tuple[str, str], ...]:
    return (("id", str(number)),)


def _family(
    name: str, count: int, labels: Callable[[int], tuple[tuple[str, str], ...]], value: str
) -> _Family:
    kind = "maxscale" if "maxscale" in name else "server"
    kind_of_metric = "counter" if name.endswith("_total") else "gauge"
    return _Family(
        name=f"mariadb_{name}", type=kind_of_metric, kind=kind, count=count, labels=labels, value=value
    )


_FAMILIES: dict[str, tuple[_Family, ...]] = {
    "server": (
        _family("global_status_aborted_clients", 1, _no_labels, "count"),
        _family("slave_status_seconds_behind_master", 1, _no_labels, "nan"),
        _family("volume_stats_available_bytes", 2, _named("disk_purpose", "data", "logs"), "inf"),
        _family("server_build", 4, _build, "count"),
        _family("global_status_buffer_pool_pages", 6, _named("state", *_STATES), "count"),
        _family("server_cpu_usage_ratio", 1, _no_labels, "small"),
        *(
            _family(f"global_status_{name}", 1, _no_labels, ("count", "exponent", "ratio")[n % 3])
            for n, name in enumerate(_STATUS)
        ),
        _family("global_status_handlers_total", len(_HANDLERS), _named("handler", *_HANDLERS), "count"),
        _family("global_status_commands_total", len(_COMMANDS), _named("command", *_COMMANDS), "count"),
        _family("info_schema_table_rows", _UNLIMITED, _table, "count"),
    ),
    "maxscale": (
        _family("maxscale_connections", 1, _no_labels, "count"),
        _family("maxscale_modules", 4, _module, "count"),
        _family("maxscale_qc_cache_hits_total", 1, _no_labels, "exponent"),
        _family("maxscale_threads_active_fds", _UNLIMITED, _numbered, "ratio"),
    ),
}
