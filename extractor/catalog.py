"""The catalogue: every endpoint that the files of `config/endpoints` and of the user's folders describe.

`load_catalog` reads them and checks each against the others; `compare` sets them against an OpenAPI file and
says what either lacks. A file holds one table per endpoint (see `endpoint`), and `[[excluded]]` entries for
paths that are left out on purpose: `path` and `reason`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import msgspec

from extractor.endpoint import (
    Class,
    ColumnType,
    Endpoint,
    Format,
    LinkPaging,
    ListType,
    MapType,
    Method,
    NextUrlPaging,
    NoPaging,
    OffsetPaging,
    PagePaging,
    Parent,
    Scalar,
    StructType,
    TimeFormat,
    TokenPaging,
    Window,
    WindowBounds,
    read_endpoint,
)
from extractor.errors import ConfigError

__all__ = (
    "Catalog",
    "Comparison",
    "Excluded",
    "Match",
    "Operation",
    "compare",
    "load_catalog",
    "read_specification",
)


# --- loading ------------------------------------------------------------------------------------------------


class Excluded(msgspec.Struct, frozen=True, kw_only=True):
    """A path of the API that no endpoint reads, and why."""

    path: str
    reason: str


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints by name, in the order of their files, and the paths left out on purpose."""

    endpoints: Mapping[str, Endpoint]
    excluded: tuple[Excluded, ...] = ()


def load_catalog(folders: Sequence[Path] = (), *, builtin: bool = True) -> Catalog:
    """The built-in catalogue, then `folders`; an endpoint of a later folder replaces one of the same name.

    Raises:
        ConfigError: one line that names the file, the table, the key, and the nearest name that would do.
    """
    endpoints: dict[str, Endpoint] = {}
    excluded: dict[str, Excluded] = {}
    if builtin:
        _read_folder(_builtin_folder(), "built-in", endpoints, excluded)
    for folder in folders:
        _read_folder(folder, str(folder), endpoints, excluded)
    for endpoint in endpoints.values():
        _check_parent(endpoint, endpoints)
        _check_columns(endpoint)
    return Catalog(endpoints=endpoints, excluded=tuple(excluded.values()))


def _builtin_folder() -> Path:
    """The files as the wheel holds them, or as a checkout does."""
    package = Path(__file__).parent
    installed = package / "catalogue"
    return installed if installed.is_dir() else package.parent / "config" / "endpoints"


def _read_folder(
    folder: Path, label: str, endpoints: dict[str, Endpoint], excluded: dict[str, Excluded]
) -> None:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and path.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"catalogue folder {label}: {error.strerror or error}") from error
    if not paths:
        raise ConfigError(f"catalogue folder {label}: there is no .toml file in it")
    seen: dict[str, str] = {}
    for path in paths:
        file = f"{label}/{path.name}"
        for name, table in _read_file(path, file).items():
            if name == "excluded":
                excluded.update((entry.path, entry) for entry in _read_excluded(table, file))
                continue
            if name in seen:
                raise ConfigError(f"{file}: [{name}] stands in {seen[name]} as well")
            seen[name] = file
            _check_keys(name, table, file)
            endpoints[name] = read_endpoint(name, table, file=file)


def _read_file(path: Path, file: str) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: a number is too long, or a value nested too deeply") from error


def _read_excluded(table: object, file: str) -> Iterator[Excluded]:
    if not isinstance(table, list):
        raise ConfigError(f"{file}: excluded is a list of tables: [[excluded]]")
    for entry in table:
        where = f"{file}: [[excluded]]"
        _refuse_unknown(entry, ("path", "reason"), where)
        match entry:
            case {"path": str(path), "reason": str(reason)} if path.startswith("/") and reason:
                yield Excluded(path=path, reason=reason)
            case _:
                raise ConfigError(f"{where} needs a path that starts with / and a reason")


# Keys and words are looked at before `read_endpoint` does, because only here is the nearest valid one named.

_ENDPOINT_KEYS = tuple(
    "class" if name == "class_" else name
    for name in Endpoint.__struct_fields__
    if name not in ("name", "file")
)
_PAGING_KEYS = {
    str(paging.__struct_config__.tag): ("kind", *paging.__struct_fields__)
    for paging in (NoPaging, TokenPaging, LinkPaging, NextUrlPaging, PagePaging, OffsetPaging)
}
_SYNC_KEYS = {
    "snapshot": ("kind",),
    "window": ("kind", *Window.__struct_fields__),
    "append": ("kind", "cursor", "mutable"),
}
_WORDS = {"method": get_args(Method), "format": get_args(Format), "class": get_args(Class)}
_SYNC_WORDS = {"format": get_args(TimeFormat), "bounds": get_args(WindowBounds)}


def _check_keys(name: str, table: object, file: str) -> None:
    where = f"{file}: [{name}]"
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {name} stands outside of any table")
    _refuse_unknown(table, _ENDPOINT_KEYS, where)
    _refuse_other_words(table, _WORDS, where)
    _refuse_unknown(table.get("parent"), Parent.__struct_fields__, f"{where} parent")
    for key, known in (("paging", _PAGING_KEYS), ("sync", _SYNC_KEYS)):
        value = table.get(key)
        if not isinstance(value, dict):
            continue
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in known:
            raise ConfigError(
                f"{where} {key}: kind {kind!r} is none of {', '.join(known)}{_nearest(kind, known)}"
            )
        _refuse_unknown(value, known[kind], f"{where} {key}")
        if key == "sync":
            _refuse_other_words(value, _SYNC_WORDS, f"{where} sync")


def _refuse_unknown(table: object, known: Sequence[str], where: str) -> None:
    if isinstance(table, dict):
        for key in table:
            if key not in known:
                raise ConfigError(f"{where}: {key!r} is no key of it{_nearest(key, known)}")


def _refuse_other_words(table: Mapping[str, object], words: Mapping[str, Sequence[str]], where: str) -> None:
    for key, known in words.items():
        word = table.get(key, known[0])
        if word not in known:
            choices = ", ".join(choice for choice in known if choice)
            raise ConfigError(f"{where}: {key} {word!r} is none of {choices}{_nearest(word, known)}")


def _nearest(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_parent(endpoint: Endpoint, endpoints: Mapping[str, Endpoint]) -> None:
    where = f"{endpoint.file}: [{endpoint.name}]"
    if endpoint.parent is None:
        if endpoint.keep:
            raise ConfigError(f"{where} keep: there is no parent to keep anything of")
        return
    parent = endpoints.get(endpoint.parent.endpoint)
    if parent is None:
        wanted = endpoint.parent.endpoint
        raise ConfigError(f"{where} parent: there is no endpoint {wanted!r}{_nearest(wanted, endpoints)}")
    chain = [endpoint.name]
    above: Endpoint | None = parent
    while above is not None:
        if above.name in chain:
            raise ConfigError(f"{where} parent: {' → '.join((*chain, above.name))} goes round in a circle")
        chain.append(above.name)
        above = endpoints.get(above.parent.endpoint) if above.parent else None
    if endpoint.sync.kind == "snapshot" and parent.sync.kind != "snapshot":
        # A run sees the parent's new rows only: a snapshot of their children would lose those of all others.
        raise ConfigError(
            f'{where} sync: must be "append", as its parent {parent.name} is read by {parent.sync.kind}'
        )
    if not parent.columns:
        return  # what its rows hold is known at the first answer only
    versions = ((name, name) for name in endpoint.parent.version)
    for key, values in (
        ("parent.params", endpoint.parent.params.items()),
        ("keep", endpoint.keep),
        ("parent.version", versions),
    ):
        for target, source in values:
            if not _holds(parent, source):
                near = _nearest(source, _names(parent))
                raise ConfigError(f"{where} {key}.{target}: {parent.name} has no column {source!r}{near}")


def _check_columns(endpoint: Endpoint) -> None:
    if not endpoint.columns:
        return
    where = f"{endpoint.file}: [{endpoint.name}]"
    names = _names(endpoint)
    sync = endpoint.sync
    for key, wanted in (
        ("key", endpoint.key),
        ("sync.cursor", (sync.cursor,)),
        ("sync.mutable", sync.mutable),
    ):
        for name in wanted:
            # `_series` and the like are the extractor's own columns.
            if name and name not in names and not name.startswith("_"):
                raise ConfigError(f"{where} {key}: there is no column {name!r}{_nearest(name, names)}")
    for column in endpoint.columns:
        # The type leaves a secret out, so only its column can be checked.
        path = re.split(r"[.\[]", column.path)[0] if column.class_ == "secret" else column.path
        if column.is_nested and not _holds(endpoint, path):
            raise ConfigError(f"{where} columns: {column.path!r} is in no column{_nearest(path, names)}")


def _names(endpoint: Endpoint) -> tuple[str, ...]:
    """The columns that a row is sure to have: declared ones that are kept, and values of the parent."""
    declared = [column.path for column in endpoint.top_columns if column.class_ != "secret"]
    return (*declared, *(name for name, _ in endpoint.keep if name not in declared))


def _holds(endpoint: Endpoint, path: str) -> bool:
    """True where `path`, say `invitees[].id`, leads to a value of a row."""
    first, *rest = path.replace("[]", ".[]").split(".")
    if first not in _names(endpoint):
        return False
    type_ = next((column.type for column in endpoint.top_columns if column.path == first), None)
    for step in rest:
        match type_:
            case None | Scalar("json"):
                return True
            case ListType(item) if step == "[]":
                type_ = item
            case MapType(value):
                type_ = value
            case StructType(members) if step in dict(members):
                type_ = dict(members)[step]
            case _:
                return False
    return True


# --- comparing ----------------------------------------------------------------------------------------------


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A GET of a specification."""

    path: str
    summary: str = ""
    parameters: tuple[str, ...] = ()
    """Names of its query parameters; required ones end in `*`."""
    deprecated: bool = False


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that reads a GET of the specification, and where the two differ.

    Nested names read `endpoints[].ports[].name`, as in the catalogue; `{}` is a value of an open map.
    """

    endpoint: str
    path: str
    parameters_unsent: tuple[str, ...] = ()
    """Of the specification; required ones end in `*`. Most are filters that an extract has no use for."""
    parameters_unknown: tuple[str, ...] = ()
    """Sent by the catalogue, unknown to the specification."""
    columns_lacking: tuple[str, ...] = ()
    """Properties of the specification that no column holds."""
    columns_unknown: tuple[str, ...] = ()
    """Columns of the catalogue that the specification does not state."""
    columns_retyped: tuple[str, ...] = ()
    """`name: type of the specification, type of the catalogue`, where neither can hold the other."""
    notes: tuple[str, ...] = ()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A catalogue set against a specification; only GETs count."""

    title: str
    operations: int
    matches: tuple[Match, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    """Paths of the specification that the catalogue leaves out on purpose."""
    lacking: tuple[Operation, ...] = ()
    """What the specification has and the catalogue lacks."""
    retired: tuple[tuple[str, str], ...] = ()
    """Name and path of the endpoints that a specification once stated and this one lacks."""
    elsewhere: tuple[tuple[str, str, str], ...] = ()
    """Name, path and origin of the endpoints that no specification is said to have, nor has this one."""

    @property
    def covered(self) -> tuple[str, ...]:
        """The paths of the specification that at least one endpoint reads."""
        return tuple(dict.fromkeys(match.path for match in self.matches))

    def lines(self) -> list[str]:
        """Plain text, most urgent first; a part without findings is left out."""
        covered, left_out, lacking = len(self.covered), len(self.excluded), len(self.lacking)
        count = f"{covered} in the catalogue, {left_out} left out on purpose, {lacking} lacking"
        lines = [f"{self.title}: {self.operations} GETs; {count}"]
        lines += _part("the catalogue lacks", (_operation_line(operation) for operation in self.lacking))
        lines += _part("the specification lacks", (f"{path}  [{name}]" for name, path in self.retired))
        lines += _part(
            "known from elsewhere, not in the specification",
            (f"{path}  [{name}], {origin}" for name, path, origin in self.elsewhere),
        )
        lines += _part("left out on purpose", (f"{entry.path}: {entry.reason}" for entry in self.excluded))
        for title, attribute in (
            ("properties that no column holds", "columns_lacking"),
            ("columns that the specification does not state", "columns_unknown"),
            ("columns of another type", "columns_retyped"),
            ("parameters that the specification does not state", "parameters_unknown"),
            ("parameters that are not sent (* required)", "parameters_unsent"),
            ("notes", "notes"),
        ):
            found = ((match.endpoint, getattr(match, attribute)) for match in self.matches)
            lines += _part(title, (f"[{name}] {', '.join(values)}" for name, values in found if values))
        return lines

    def to_json(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "title": self.title,
            "operations": self.operations,
            "lacking": [
                {
                    "path": operation.path,
                    "summary": operation.summary,
                    "parameters": list(operation.parameters),
                    "deprecated": operation.deprecated,
                }
                for operation in self.lacking
            ],
            "retired": [{"endpoint": name, "path": path} for name, path in self.retired],
            "elsewhere": [
                {"endpoint": name, "path": path, "origin": origin} for name, path, origin in self.elsewhere
            ],
            "excluded": [{"path": entry.path, "reason": entry.reason} for entry in self.excluded],
            "matches": [
                {
                    "endpoint": match.endpoint,
                    "path": match.path,
                    "parameters_unsent": list(match.parameters_unsent),
                    "parameters_unknown": list(match.parameters_unknown),
                    "columns_lacking": list(match.columns_lacking),
                    "columns_unknown": list(match.columns_unknown),
                    "columns_retyped": list(match.columns_retyped),
                    "notes": list(match.notes),
                }
                for match in self.matches
            ],
        }


def compare(catalog: Catalog, specification: Mapping[str, object]) -> Comparison:
    """Say what an OpenAPI 3 or Swagger 2 document has and the catalogue lacks, and the reverse.

    Paths are the same where they differ in the names of placeholders only; a slash at the end of only one of
    them is noted. Neither document nor catalogue is changed.
    """
    operations: dict[str, _Get] = {}
    for get in _read_gets(specification):
        operations.setdefault(_template(get.path), get)
    by_template: dict[str, list[Endpoint]] = {}
    for endpoint in catalog.endpoints.values():
        if endpoint.method == "GET":
            by_template.setdefault(_template(endpoint.path), []).append(endpoint)
    left_out = {_template(entry.path): entry for entry in catalog.excluded}
    matches: list[Match] = []
    excluded: list[Excluded] = []
    lacking: list[Operation] = []
    for template, get in operations.items():
        if template in by_template:
            matches += [_match(endpoint, get, specification) for endpoint in by_template[template]]
        elif template in left_out:
            excluded.append(left_out[template])
        else:
            lacking.append(
                Operation(
                    path=get.path,
                    summary=get.summary,
                    parameters=_starred(get.parameters),
                    deprecated=get.deprecated,
                )
            )
    strangers = [
        endpoint
        for template, found in by_template.items()
        if template not in operations
        for endpoint in found
    ]
    about = _mapping(specification.get("info"))
    return Comparison(
        title=" ".join(str(about[key]) for key in ("title", "version") if about.get(key))
        or "the specification",
        operations=len(operations),
        matches=tuple(matches),
        excluded=tuple(excluded),
        lacking=tuple(lacking),
        retired=tuple((endpoint.name, endpoint.path) for endpoint in strangers if endpoint.origin == "spec"),
        elsewhere=tuple(
            (endpoint.name, endpoint.path, endpoint.origin)
            for endpoint in strangers
            if endpoint.origin != "spec"
        ),
    )


def read_specification(path: Path) -> Mapping[str, object]:
    """An OpenAPI or Swagger document, from JSON or, where PyYAML is installed, from YAML.

    Raises:
        ConfigError: the file cannot be read, or is no such document, or is YAML and PyYAML is missing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    document = _read_json(text, path) if text.lstrip().startswith("{") else _read_yaml(text, path)
    if not isinstance(document, dict) or not isinstance(document.get("paths"), dict):
        raise ConfigError(f"{path}: no OpenAPI document, it has no paths")
    return document


def _read_json(text: str, path: Path) -> object:
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return document


def _read_yaml(text: str, path: Path) -> object:
    try:
        yaml = importlib.import_module("yaml")  # an extra, and nothing else needs it
    except ImportError as error:
        raise ConfigError(f"{path}: YAML needs PyYAML: pip install 'skysql-extractor[openapi]'") from error
    try:
        # The loader in C, where there is one, takes a tenth of the time.
        document: object = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    return document


def _part(title: str, findings: Iterable[str]) -> list[str]:
    found = [f"  {finding}" for finding in findings]
    return ["", f"{title} ({len(found)})", *found] if found else []


def _operation_line(operation: Operation) -> str:
    parameters = f"  ?{'&'.join(operation.parameters)}" if operation.parameters else ""
    summary = f"  {operation.summary}" if operation.summary else ""
    return f"{operation.path}{parameters}{summary}{'  (deprecated)' if operation.deprecated else ''}"


# --- reading a specification --------------------------------------------------------------------------------


class _Get(msgspec.Struct, frozen=True, kw_only=True):
    """A GET as its document states it."""

    path: str
    summary: str
    deprecated: bool
    parameters: Mapping[str, bool]
    """Query parameters by name; True where required."""
    answer: Mapping[str, object] | None
    """The schema of its first success in JSON."""


def _read_gets(specification: Mapping[str, object]) -> Iterator[_Get]:
    prefix = _prefix(specification)
    for path, item in _mapping(specification.get("paths")).items():
        member = _resolve(item, specification)
        get = member.get("get")
        if not isinstance(get, Mapping):
            continue
        query: dict[str, bool] = {}
        for stated in (*_sequence(member.get("parameters")), *_sequence(get.get("parameters"))):
            parameter = _resolve(stated, specification)
            if parameter.get("in") == "query":
                query[str(parameter.get("name"))] = parameter.get("required") is True
        yield _Get(
            path=path if prefix and path.startswith(f"{prefix}/") else prefix + path,
            summary=str(get.get("summary") or ""),
            deprecated=get.get("deprecated") is True,
            parameters=query,
            answer=_answer(get, specification),
        )


def _prefix(specification: Mapping[str, object]) -> str:
    """What stands before each path: `basePath` of Swagger 2, the first server's path of OpenAPI 3."""
    if (base := specification.get("basePath")) is not None:
        return str(base).rstrip("/")
    servers = _sequence(specification.get("servers"))
    return urlsplit(str(_mapping(servers[0]).get("url", ""))).path.rstrip("/") if servers else ""


def _answer(get: Mapping[str, object], specification: Mapping[str, object]) -> Mapping[str, object] | None:
    for status, stated in sorted(_mapping(get.get("responses")).items(), key=lambda entry: str(entry[0])):
        if not str(status).startswith("2"):
            continue
        response = _resolve(stated, specification)
        if isinstance(schema := response.get("schema"), Mapping):  # Swagger 2
            return schema
        for media_type, content in _mapping(response.get("content")).items():
            schema = _mapping(content).get("schema")
            if "json" in media_type and isinstance(schema, Mapping):
                return schema
    return None


def _template(path: str) -> str:
    """`path` without the names of its placeholders, `{id}` or `:id`, and without a slash at its end."""
    return re.sub(r"\{[^{}]*\}|(?<=/):[^/]+", "{}", path).rstrip("/")


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _resolve(value: object, specification: Mapping[str, object]) -> Mapping[str, object]:
    """What `$ref` leads to, within the document; nothing where it leads out of it or round in a circle."""
    seen: set[str] = set()
    found = _mapping(value)
    while isinstance(reference := found.get("$ref"), str):
        if reference in seen or not reference.startswith("#/"):
            return {}
        seen.add(reference)
        target: object = specification
        for step in reference[2:].split("/"):
            target = _mapping(target).get(step.replace("~1", "/").replace("~0", "~"))
        found = _mapping(target)
    return found


_Kind: TypeAlias = Literal["string", "integer", "number", "boolean", "array", "object", "map", "any"]


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A schema reduced to what columns can say."""

    kind: _Kind
    properties: Mapping[str, object] = {}
    item: object = None
    """The schema of an array's items or an open map's values."""


def _shape(schema: object, specification: Mapping[str, object], depth: int = 0) -> _Shape:
    if depth > 16:  # an allOf that holds itself
        return _Shape(kind="any")
    resolved = _resolve(schema, specification)
    choices = [
        choice
        for key in ("anyOf", "oneOf")
        for choice in _sequence(resolved.get(key))
        if _resolve(choice, specification).get("type") != "null"
    ]
    parts = [_shape(part, specification, depth + 1) for part in _sequence(resolved.get("allOf"))]
    if len(choices) == 1:
        parts.append(_shape(choices[0], specification, depth + 1))
    elif choices:
        return _Shape(kind="any")
    properties: dict[str, object] = {}
    for part in parts:
        properties.update(part.properties)
    properties.update(_mapping(resolved.get("properties")))
    if properties:
        return _Shape(kind="object", properties=properties)
    stated = resolved.get("type")
    names = [
        name for name in (stated if isinstance(stated, list) else [stated]) if name not in (None, "null")
    ]
    if not names:
        return next((part for part in parts if part.kind != "any"), _Shape(kind="any"))
    if len(names) > 1:
        return _Shape(kind="any")
    match names[0]:
        case "array":
            return _Shape(kind="array", item=resolved.get("items"))
        case "object":
            values = resolved.get("additionalProperties")
            return (
                _Shape(kind="map", item=values)
                if isinstance(values, Mapping) and values
                else _Shape(kind="any")
            )
        case "string" | "integer" | "number" | "boolean" as kind:
            return _Shape(kind=kind)
        case _:
            return _Shape(kind="any")


# --- one endpoint against one GET ---------------------------------------------------------------------------


# Which column types can hold a scalar of a specification.
_HOLDS: Mapping[_Kind, frozenset[str]] = {
    "string": frozenset(("string", "timestamp", "timestamp_naive", "decimal", "binary", "json")),
    "integer": frozenset(("int64", "float64", "decimal", "epoch", "json")),
    "number": frozenset(("float64", "decimal", "json")),
    "boolean": frozenset(("bool", "json")),
}


class _Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Findings of one walk through rows and columns, in the order met."""

    lacking: list[str] = []
    unknown: list[str] = []
    retyped: list[str] = []


def _match(endpoint: Endpoint, get: _Get, specification: Mapping[str, object]) -> Match:
    sent = _sent(endpoint)
    notes: list[str] = []
    if endpoint.path.endswith("/") != get.path.endswith("/"):
        notes.append(f"the specification writes {get.path}, the catalogue {endpoint.path}")
    drift = _Drift()
    if get.answer is not None and endpoint.columns and endpoint.format in ("json", "ndjson"):
        row = _row(endpoint, get.answer, specification)
        if row is None:
            notes.append(f"the specification's answer has no rows at {endpoint.records!r}")
        elif row.kind == "object":
            _compare_row(endpoint, row, specification, drift)
    return Match(
        endpoint=endpoint.name,
        path=get.path,
        parameters_unsent=_starred({name: need for name, need in get.parameters.items() if name not in sent}),
        parameters_unknown=tuple(name for name in sent if name not in get.parameters),
        columns_lacking=tuple(drift.lacking),
        columns_unknown=tuple(drift.unknown),
        columns_retyped=tuple(drift.retyped),
        notes=tuple(notes),
    )


def _starred(parameters: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(f"{name}*" if required else name for name, required in parameters.items())


def _sent(endpoint: Endpoint) -> tuple[str, ...]:
    """The query parameters that the endpoint may send, each once."""
    names = [name for name, _ in endpoint.params]
    if endpoint.parent:
        names += [name for name in endpoint.parent.params if name not in endpoint.placeholders]
    match endpoint.paging:
        case TokenPaging(request_param=name):
            names.append(name)
        case PagePaging(page_param=name):
            names.append(name)
        case OffsetPaging(offset_param=offset, limit_param=limit):
            names += [offset, limit]
        case _:
            pass
    if window := endpoint.sync.window:
        names += [name for name in (window.from_param, window.to_param) if name]
    return tuple(dict.fromkeys(names))


def _row(
    endpoint: Endpoint, answer: Mapping[str, object], specification: Mapping[str, object]
) -> _Shape | None:
    """One row of the answer, or nothing where the pointer to the rows leads nowhere."""
    shape = _shape(answer, specification)
    for step in endpoint.records.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if name not in shape.properties:
            return None
        shape = _shape(shape.properties[name], specification)
    return _shape(shape.item, specification) if shape.kind == "array" else shape


def _compare_row(endpoint: Endpoint, row: _Shape, specification: Mapping[str, object], drift: _Drift) -> None:
    kept = {name for name, _ in endpoint.keep}
    nested = frozenset(column.path for column in endpoint.columns if column.is_nested)
    columns = {column.path: column.type for column in endpoint.top_columns}
    drift.lacking.extend(name for name in row.properties if name not in columns)
    drift.unknown.extend(name for name in columns if name not in row.properties and name not in kept)
    for name, type_ in columns.items():
        if type_ is not None and name in row.properties:
            _compare_value(name, row.properties[name], type_, specification, nested, drift)


def _compare_value(
    path: str,
    schema: object,
    type_: ColumnType,
    specification: Mapping[str, object],
    nested: frozenset[str],
    drift: _Drift,
) -> None:
    """Add to `drift` where the column's type loses a part of the value; `nested` paths are accounted for."""
    shape = _shape(schema, specification)
    match shape.kind, type_:
        case ("any", _) | (_, Scalar("json")):
            pass
        case "object", StructType(members):
            known = dict(members)
            for name, value in shape.properties.items():
                if name in known:
                    _compare_value(f"{path}.{name}", value, known[name], specification, nested, drift)
                elif f"{path}.{name}" not in nested:
                    drift.lacking.append(f"{path}.{name}")
            drift.unknown.extend(f"{path}.{name}" for name in known if name not in shape.properties)
        case "array", ListType(item):
            _compare_value(f"{path}[]", shape.item, item, specification, nested, drift)
        case "map", MapType(value_type):
            _compare_value(f"{path}{{}}", shape.item, value_type, specification, nested, drift)
        case "object", MapType():
            pass
        case kind, Scalar(name) if name in _HOLDS.get(kind, ()):
            pass
        case kind, _:
            drift.retyped.append(f"{path}: {kind}, {_written(type_)}")


def _written(type_: ColumnType) -> str:
    match type_:
        case Scalar(name):
            return name
        case ListType():
            return "list"
        case MapType():
            return "map"
        case StructType():
            return "struct"
