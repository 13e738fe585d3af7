"""Who works in the organization: users, API keys, invites, projects, roles; and whom notifications reach."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

from extractor.sandbox.history import Chapter
from extractor.sandbox.rows import Row, Rows
from extractor.sandbox.world import World

__all__ = (
    "api_keys",
    "channels",
    "ever_notified",
    "invites",
    "invites_of_invitee",
    "notification_ordinals",
    "notifications",
    "organization",
    "preferences",
    "progress",
    "projects",
    "public_key",
    "roles",
    "users",
)

_GIVEN = "Ada Bożena Chidi Dewi Emil Farah Göran Hana Ivo Joana Kenji Lior".split()
_FAMILY = "Ash Birch Cedar Dill Elm Fern Gorse Hazel Iris Juniper Kale Laurel".split()
_CATEGORIES = ("service", "billing", "security", "maintenance", "backup")
_EVENTS = ("created", "scaled", "stopped", "started", "upgraded")
_DAY = 86_400


def users(world: World) -> Rows:
    """The members of the organization."""
    is_empty = "organization-empty" in world.options.variants
    rows = [] if is_empty else [_user(world, n) for n in range(len(_GIVEN))]
    return world.kept("users", lambda: world.keyed(rows, label="user"))


def api_keys(world: World, params: Mapping[str, str]) -> Rows | None:
    """The API keys of one user: none, one or two."""
    found = users(world).find("id", params["user_id"])
    if found is None:
        return None
    return world.kept(f"keys {found}", lambda: world.keyed(_keys(world, found), label="key"))


def organization(world: World, params: Mapping[str, str]) -> Rows | None:
    """The organization itself; there is no other."""
    return Rows.of([_org(world)]) if params["org_id"] == world.org else None


def invites(world: World) -> Rows:
    """Open and accepted invitations, with their issuer nested."""
    rows = [_invite(world, n) for n in range(3)]
    return world.kept("invites", lambda: world.keyed(rows, label="invite"))


def invites_of_invitee(world: World, params: Mapping[str, str]) -> Rows | None:
    """The invitation that names an invitee."""
    for row in map(invites(world).row, invites(world).ordinals()):
        invitees = row["invitees"]
        assert isinstance(invitees, list)
        if any(invitee["id"] == params["invitee_id"] for invitee in invitees):
            return Rows.of([row])
    return None


def projects(world: World) -> Rows:
    """Projects that group services."""
    is_empty = "organization-empty" in world.options.variants
    rows: list[Row] = [
        {
            "created_by": world.chance.uuid("user", n),
            "created_on": world.moment("project", n),
            "description": "" if n else "The default project",
            "id": world.chance.uuid("project", n),
            "is_default": n == 0,
            "name": ("Default", "Research", "Web & mobile")[n],
            "updated_by": "",
            "updated_on": 0,
        }
        for n in range(0 if is_empty else 3)
    ]
    return world.kept("projects", lambda: world.keyed(rows, label="project"))


def roles(world: World) -> Rows:
    """Roles; none unless the variant asks for them."""
    names = ("ADMIN", "MEMBER", "VIEWER") if "roles-present" in world.options.variants else ()
    rows: list[Row] = [
        {
            "created_by": "system",
            "created_on": world.birth_epoch,
            "default": name == "MEMBER",
            "description": f"{name.title()} of the organization",
            "id": world.chance.uuid("role", n),
            "is_active": True,
            "name": name,
            "updated_by": "system",
            "updated_on": world.birth_epoch,
        }
        for n, name in enumerate(names)
    ]
    return world.kept("roles", lambda: world.keyed(rows, label="role"))


def public_key(world: World, params: Mapping[str, str]) -> Rows | None:
    """The public key of a version; only version 1 exists."""
    if params["key_version"] != "1":
        return None
    text = (
        f"-----BEGIN PUBLIC KEY-----\n{world.chance.bits('public key', 0):064x}\n-----END PUBLIC KEY-----\n"
    )
    return Rows.of(
        [{"algo": "RS256", "data": text, "id": world.chance.uuid("public key", 0), "version": "1"}]
    )


def channels(world: World) -> Rows:
    """E-mail channels of notifications."""
    rows: list[Row] = [
        {
            "categories": list(_CATEGORIES[: n + 1]),
            "channel_name": f"channel {n}",
            "id": world.chance.uuid("channel", n),
            "org_id": world.org,
            "receivers": [_receiver(n), _receiver(n + 3)][: n + 1],
            "subscriber_id": world.chance.uuid("subscriber", 0),
        }
        for n in range(3)
    ]
    return world.kept("channels", lambda: world.keyed(rows, label="channel"))


def preferences(world: World) -> Rows:
    """What the subscriber wants to hear of: one row."""
    return Rows.of(
        [
            {
                "categories": {name: n % 2 == 0 for n, name in enumerate(_CATEGORIES)},
                "org_id": world.org,
                "subscriber_id": world.chance.uuid("subscriber", 0),
            }
        ]
    )


def progress(world: World) -> Rows:
    """Steps of the services that are being changed: at most three."""
    steps: list[Row] = [{"name": "provision", "state": "done"}, {"name": "configure", "state": "running"}]
    return Rows.of(
        [
            {"service_id": world.service_id(n), "steps": steps[: n % 3]}
            for n in range(min(3, world.options.services))
        ]
    )


def notifications(world: World) -> Rows:
    """Notifications, newest first; several share a second, and some stand exactly on midnight."""

    def fresh(number: int) -> Row:
        row = _notification(world, world.options.notifications + number)
        if world.options.changes:
            return {**row, "created_on": _happened_at(world, number)}
        # What comes in while pages are read happened now, not in a window already read.
        return {**row, "created_on": int(world.now())}

    count = world.options.notifications
    world.narrate("notifications", lambda now: _notified_until(world, now))
    return world.kept("notifications", lambda: world.rows(count, lambda n: _notification(world, n), fresh))


def notification_ordinals(world: World, after: int | None, before: int | None) -> Sequence[int]:
    """The notifications created strictly between two epoch seconds, found without making any row."""
    rows = notifications(world)
    first, last = 0, rows.count
    if before is not None:
        first = bisect_right(range(rows.count), -before, key=lambda n: -_notified_at(world, n))
    if after is not None:
        last = bisect_left(range(rows.count), -after, key=lambda n: -_notified_at(world, n))
    inserted = [
        ordinal
        for ordinal in range(-len(rows.inserted), 0)
        if (after is None or int(str(rows.row(ordinal)["created_on"])) > after)
        and (before is None or int(str(rows.row(ordinal)["created_on"])) < before)
    ]
    kept = range(first, max(first, last))
    if rows.absent:
        return [ordinal for ordinal in (*inserted, *kept) if ordinal not in rows.absent]
    return [*inserted, *kept] if inserted else kept


def ever_notified(world: World) -> Iterator[Row]:
    """The notifications that could be read at some time until now, those that are gone among them."""
    rows = notifications(world)
    for ordinal in range(-len(rows.inserted), rows.count):
        if ordinal >= 0 or _arrives_at(world, -ordinal - 1) <= world.anchor_epoch + world.elapsed:
            yield rows.row(ordinal)


def _happened_at(world: World, number: int) -> int:
    """When the n-th notification after the anchor happened; some stand exactly on midnight."""
    per_day = max(1, world.options.notifications // 27)
    moment = world.anchor_epoch + number * _DAY // per_day
    return moment - moment % _DAY if world.chance.bits("on midnight", number) % 7 == 0 else moment


def _arrives_at(world: World, number: int) -> int:
    """When it can first be read: every fifth or so is up to 48 hours late."""
    bits = world.chance.bits("late", number)
    happened = world.anchor_epoch + number * _DAY // max(1, world.options.notifications // 27)
    stamped = _happened_at(world, number)
    return happened if bits % 5 else stamped + max(happened - stamped, (bits >> 8) % (2 * _DAY + 1))


def _notified_until(world: World, now: float) -> Chapter:
    """What has happened, what of it cannot be read yet or any more, and what was marked as read."""
    per_day = max(1, world.options.notifications // 27)
    added = int((now - world.anchor_epoch) * per_day // _DAY) + 1
    absent = {-n - 1 for n in range(added) if _arrives_at(world, n) > now}
    changed: dict[int, Mapping[str, object]] = {}
    for ordinal in range(-added, world.options.notifications):
        bits = world.chance.bits("fate", ordinal)
        since = world.anchor_epoch if ordinal >= 0 else _arrives_at(world, -ordinal - 1)
        if bits % 15 == 3 and since + 5 * _DAY + (bits >> 16) % (20 * _DAY) <= now:
            absent.add(ordinal)
        elif bits % 4 == 1 and since + 3600 + (bits >> 16) % (4 * _DAY) <= now:
            changed[ordinal] = {"marked_read": bits % 8 == 1}
    return Chapter(added=added, absent=frozenset(absent), changed=changed)


def _notification(world: World, n: int) -> Row:
    service = n * 7 % max(1, world.options.services)
    category = _CATEGORIES[n % len(_CATEGORIES)]
    event = _EVENTS[n // 3 % len(_EVENTS)]
    return {
        "category": category,
        "created_by": world.chance.uuid("user", n % 12),
        "created_on": _notified_at(world, n),
        "display_string": f"{world.service_name(service)}: {category} {event}",
        "event_type": f"{category}.{event}",
        "id": world.chance.uuid("notification", n),
        "level": ("info", "warning", "error")[n % 3],
        "marked_read": n % 2 == 0,
        "org_id": world.org,
        "subscriber_id": world.chance.uuid("subscriber", 0),
    }


def _notified_at(world: World, n: int) -> int:
    # Spread over 27 days, in groups of one to three equal stamps, never rising with n.
    count = max(1, world.options.notifications)
    group = n - n % 6 + (0, 1, 1, 3, 3, 3)[n % 6]
    moment = world.anchor_epoch - 3600 - min(group, count) * (27 * _DAY - 3600) // count
    is_on_midnight = n // 6 % 5 == 2
    if is_on_midnight:
        midnight = moment - moment % _DAY
        # Only where it keeps the order: no stamp of the next group may be later.
        return midnight if midnight >= _plain_stamp(world, n - n % 6 + 6, count) else moment
    return moment


def _plain_stamp(world: World, group: int, count: int) -> int:
    return world.anchor_epoch - 3600 - min(group, count) * (27 * _DAY - 3600) // count


def _user(world: World, n: int) -> Row:
    created = world.moment("user", n)
    return {
        "created_by": world.chance.uuid("user", 0),
        "created_on": created,
        "email": f"{_FAMILY[n].lower()}@example.com",
        "first_name": _GIVEN[n],
        "id": world.chance.uuid("user", n),
        "invited": n > 2,
        "is_active": n != 7,
        "is_deleted": False,
        "last_name": _FAMILY[n],
        "mfa_enabled": n % 2 == 0,
        "org": _org(world),
        "org_id": world.org,
        "roles": ["ADMIN", "MEMBER"][: 1 + n % 2],
        "updated_by": "",
        "updated_on": 0 if n % 3 == 2 else created + 9,
    }


def _org(world: World) -> Row:
    return {
        "created_by": "system",
        "created_on": world.birth_epoch,
        "current_owner": world.chance.uuid("user", 0),
        "id": world.org,
        "is_active": True,
        "is_deleted": False,
        "name": f"Organization {world.org}",
        "tier": "power",
        "updated_by": "",
        "updated_on": 0,
    }


def _keys(world: World, user: int) -> list[Row]:
    def key(n: int) -> Row:
        bits = world.chance.bits("api key", n)
        return {
            "api_key": f"skysql.{bits % 1296:04x}.{bits >> 32:08x}.{bits:036d}.{bits & 0xFFFFFFFF:08x}",
            "created_by": world.chance.uuid("user", user),
            "created_date": world.moment("api key", n),
            "is_active": n % 3 != 2,
            "key_id": world.chance.uuid("key id", n),
            "label": f"key {n}",
            "updated_by": "",
            "updated_date": 0,
        }

    return [key(user * 3 + place) for place in range(user % 3)]


def _invite(world: World, n: int) -> Row:
    created = world.moment("invite", n)
    invitees: list[Row] = [
        {
            "email": f"guest{n}{place}@example.com",
            "id": world.chance.uuid("invitee", n * 2 + place),
            "roles": ["MEMBER"],
            "status": ("pending", "accepted")[place],
            "url": f"https://app.example.com/join/{world.chance.bits('invite url', n * 2 + place):016x}",
        }
        for place in range(1 + n % 2)
    ]
    return {
        "created_on": created,
        "expire_on": min(created + 7 * _DAY, world.anchor_epoch - 1),
        "id": world.chance.uuid("invite", n),
        "invitees": invitees,
        "issuer": _user(world, n),
        "org_id": world.org,
        "updated_on": created,
    }


def _receiver(n: int) -> Row:
    return {"email": f"{_FAMILY[n].lower()}@example.com", "name": f"{_GIVEN[n]} {_FAMILY[n]}"}
