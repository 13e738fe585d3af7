"""What belongs to a service: backups, schedules, restores, maintenance, allow lists, scaling actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import md5

from extractor.sandbox.rows import Ragged, Row, Rows, Selection
from extractor.sandbox.world import World, instant

__all__ = (
    "actions",
    "allow_list",
    "backups",
    "credentials",
    "lookup",
    "maintenance",
    "of_service",
    "replicas",
    "restores",
    "schedules",
)

_BACKUPS = Ragged(3, 1, 0, 2, 4)
_SCHEDULES = Ragged(1, 2, 0, 1, 1)
_RESTORES = Ragged(0, 1, 0, 0, 1)
_MAINTENANCE = Ragged(2, 0, 1, 3, 1)
_ACTIONS = Ragged(0, 1, 2, 0, 3)
_SHAPES = {"backups": _BACKUPS, "schedules": _SCHEDULES, "restores": _RESTORES}
_FIRST_ID = 1000
_INSERTED_ID = 1 << 40


def backups(world: World) -> Rows:
    """All backups, newest services first."""
    return world.kept("backups", lambda: _children(world, _BACKUPS, _backup))


def schedules(world: World) -> Rows:
    """All backup schedules."""
    return world.kept("schedules", lambda: _children(world, _SCHEDULES, _schedule))


def restores(world: World) -> Rows:
    """All restores."""
    return world.kept("restores", lambda: _children(world, _RESTORES, _restore))


def of_service(world: World, label: str, rows: Rows, service_id: str) -> Selection:
    """The rows of a collection that belong to one service; none where there is no such service."""
    index = world.service_index(service_id)
    if index is None or index >= world.services.count:
        return Selection(rows, ())
    shape = _SHAPES[label]
    start = shape.start(index)
    inserted = [o for o in range(-len(rows.inserted), 0) if rows.row(o)["service_id"] == service_id]
    ordinals = [*inserted, *range(start, start + shape.size(index))]
    return Selection(rows, [ordinal for ordinal in ordinals if ordinal not in rows.absent])


def lookup(world: World, *, of_start: bool = False) -> Iterator[Row]:
    """The span to which each service can be restored; every third service has one."""
    for index in world.service_indices(of_start=of_start):
        if index % 3 or index >= world.services.count:
            continue
        yield {
            "end_time": instant(world.anchor_epoch - 60),
            "service_id": world.service_id(index),
            "service_name": world.service_name(index),
            "start_time": instant(world.moment("lookup", index, back_days=6) - 86_400),
        }


def replicas(world: World, index: int) -> Rows:
    """Services that replicate this one: whole services, listed among the services too."""
    has_replica = index % 5 == 1 and index + 1 < world.services.count
    has_replica = has_replica and index + 1 not in world.services.absent
    return Rows.of([world.service_row(index + 1)] if has_replica else [])


def maintenance(world: World, index: int) -> Rows:
    """Maintenance activities of a service."""
    return _of_parent(world, _MAINTENANCE, index, _activity)


def allow_list(world: World, index: int) -> Rows:
    """The endpoints of a service with the addresses they admit."""
    if index >= world.services.count:
        return Rows.of(())
    bits = world.chance.bits("allow list", index)
    admitted: list[Row] = [
        {"comment": "office" if n else "", "ip": f"203.0.113.{bits % 200 + n}/32"} for n in range(bits % 3)
    ]
    names = ("primary", "secondary")[: 1 + index % 2]
    return Rows.of(
        [
            {"allowList": [str(a["ip"]) for a in admitted], "allow_list": admitted, "name": name}
            for name in names
        ]
    )


def credentials(world: World, index: int) -> Rows:
    """The default account of a service. Secret."""
    password = f"{world.chance.bits('password', index):016x}"
    return Rows.of(
        [
            {
                "host": f"{world.service_id(index)}.sysp0000.db.skysql.example",
                "password": password,
                "username": f"dbpgf{index:08d}",
            }
        ]
    )


def actions(world: World, index: int) -> Rows:
    """Autoscale actions of a service; `params` differ by group."""
    return _of_parent(world, _ACTIONS, index, _action)


def _children(world: World, shape: Ragged, make: Callable[[World, int, int, int], Row]) -> Rows:
    def at(child: int) -> Row:
        return make(world, *shape.locate(child), child)

    def fresh(number: int) -> Row:
        return make(world, 0, 0, _INSERTED_ID + number)

    return world.rows(shape.start(world.services.count), at, fresh if world.services.count else None)


def _of_parent(world: World, shape: Ragged, index: int, make: Callable[[World, int, int], Row]) -> Rows:
    if index >= world.services.count:
        return Rows.of(())
    start = shape.start(index)
    return world.rows(shape.size(index), lambda place: make(world, index, start + place))


def _backup(world: World, service: int, place: int, child: int) -> Row:
    bits = world.chance.bits("backup", child)
    service_id, name = world.service_id(service), world.service_name(service)
    start = world.moment("backup time", child, back_days=7)
    digest = md5(f"{bits}".encode(), usedforsecurity=False).hexdigest()
    size = bits % (1 << 42)
    return {
        "binlog_file": f"mariadb-bin.{bits % 10**6:06d}",
        "binlog_gtid_position": f"0-{bits % 9000}-{bits % 10**9}",
        "binlog_position": str(bits % 10**8),
        "cloud_provider": world.provider(service),
        "disk_size": f"{size // (1 << 30)}Gi",
        "disk_size_bytes": size,
        "end_time": instant(start + 30),
        "id": f"{digest}:{service_id}:{name}-mdb-ms-0",
        "is_external_storage": bits % 10 == 9,
        "method": ("skybucket", "snapshot")[bits & 1],
        "point_in_time": instant(start - 36).replace("T", " ").rstrip("Z"),
        "reference_full_backup": f"{digest[::-1]}" if place % 2 else "",
        "server_pod": f"{name}-mdb-ms-0",
        "service_id": service_id,
        "service_name": name,
        "start_time": instant(start),
        "status": ("Succeeded", "Succeeded", "Running", "Failed")[bits >> 1 & 3],
        "storage_bytes": size // 3,
        "type": "incremental" if place % 2 else "full",
    }


def _schedule(world: World, service: int, place: int, child: int) -> Row:
    bits = world.chance.bits("schedule", child)
    created = world.moment("schedule time", child)
    return {
        "cloud_provider": world.provider(service),
        "created_at": instant(created),
        "id": _FIRST_ID + child,
        "labels": {"origin": "portal", "retention_days": bits % 30, "pinned": bool(bits & 1)}
        if bits & 6
        else {},
        "message": "" if bits & 8 else "last run succeeded",
        "schedule": "once" if bits & 16 else f"{bits % 60} {bits % 24} * * *",
        "scheduled_at": instant(created + 3600) if bits & 16 else None,
        "service_id": world.service_id(service),
        "service_name": world.service_name(service),
        "status": ("Scheduled", "Done")[place % 2],
        "suspended": bits % 7 == 0,
        "type": ("full", "incremental", "binarylog")[bits % 3],
        "updated_at": instant(created + 60),
    }


def _restore(world: World, service: int, place: int, child: int) -> Row:
    service_id = world.service_id(service)
    backup = _backup(world, service, 0, _BACKUPS.start(service))
    is_array = "restores-array" in world.options.variants
    return {
        "key" if is_array else "backup_id": backup["id"],
        "bucket": f"gs://sandbox-backups/{world.org}",
        "created_at": instant(world.moment("restore time", child)),
        "id": _FIRST_ID + child,
        "message": "" if child % 3 else "server is not-ready",
        "service_id": service_id,
        "service_name": world.service_name(service),
        "status": ("Succeeded", "Running")[child % 2],
        "type": "physical",
    }


def _activity(world: World, service: int, child: int) -> Row:
    bits = world.chance.bits("maintenance", child)
    created = world.moment("maintenance time", child, back_days=20) - 3 * 86_400
    is_done = bits % 3 == 0
    is_scheduled = bits % 3 == 1
    return {
        "auto_apply_after": instant(created + 86_400),
        "classification": ("infrastructure", "security", "database")[bits % 3],
        "completed_at": instant(created + 7200) if is_done else None,
        "created_by": "system",
        "created_on": instant(created),
        "current_version": "10.6.21-17",
        "deferral_count": bits % 4,
        "deferred_until": instant(created + 40_000) if bits & 64 else None,
        "description": "Database upgrade\nwith a restart",
        "expected_impact": ("no_downtime", "brief_downtime", "extended_downtime")[bits >> 3 & 1],
        "expected_impact_description": "connections are closed once",
        "expected_impact_label": "Brief",
        "forced_apply_by": instant(created + 90_000),
        "id": world.chance.uuid("maintenance", child),
        "is_critical": bits % 5 == 0,
        "metadata": {"steps": [{"order": 1, "note": "drain"}, {"order": 2}], "ticket": f"T-{bits % 999}"}
        if bits & 8
        else {"reason": "planned"},
        "priority": "required" if bits & 16 else "recommended",
        "reschedule_count": bits % 2,
        "scheduled_at": instant(created + 3600) if is_scheduled or is_done else None,
        "scheduled_window": "weekly-2",
        "service_id": world.service_id(service),
        "started_at": instant(created + 3700) if is_done else None,
        "state": "completed" if is_done else "scheduled" if is_scheduled else "available",
        "target_completion_date": instant(created + 95_000),
        "target_version": "10.6.22-18",
        "updated_on": instant(created + 7300),
    }


def _action(world: World, service: int, child: int) -> Row:
    group, params = (
        ("autoScaleDisk", {"max_storage_size_gbs": 2000}),
        ("autoScaleNodesHorizontal", {"min_nodes": 2, "max_nodes": 5}),
        ("autoScaleNodesVertical", {"min_node_size": "sky-2x8", "max_node_size": "sky-16x64"}),
    )[child % 3]
    created = world.moment("action", child)
    return {
        "id": world.chance.uuid("action", child),
        "group": group,
        "enabled": child % 4 != 3,
        "params": params,
        "tenant_id": world.org,
        "service_id": world.service_id(service),
        "service_name": world.service_name(service),
        "created_at": instant(created),
        "updated_at": instant(created + 10),
    }
