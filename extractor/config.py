"""Settings: flags, environment, file and defaults, merged and checked before the first request.

`load_config` gives one frozen `Config`. Credentials are not settings: `find_key` looks for them where
the contract allows, and refuses two that differ.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit

import msgspec

from extractor.errors import AuthError, ConfigError

__all__ = (
    "Account",
    "Bounds",
    "Checks",
    "Config",
    "KeySources",
    "LakeConfig",
    "LimitsConfig",
    "Notify",
    "ParquetConfig",
    "RunConfig",
    "SecretText",
    "Source",
    "find_key",
    "is_loopback",
    "load_config",
    "nearest_name",
    "parse_duration",
    "with_run",
)

T = TypeVar("T")

DEFAULT_FILE = "skysql-extract.toml"
ENVIRONMENT_PREFIX = "SKYSQL_"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file: frozen, and no key that it does not know."""


class Source(_Table, frozen=True, kw_only=True):
    """Where the API is and how to speak to it."""

    base_url: str = "https://api.skysql.com"
    auth: Literal["api_key", "bearer"] = "api_key"
    token_url: str = "https://id.mariadb.com/api/v1/token/"
    keyinfo_url: str = "https://id.mariadb.com/api/v1/keyinfo/"
    organization: str = ""
    key_file: str = ""
    key_command: tuple[str, ...] = ()
    catalogs: tuple[str, ...] = ()
    builtin: bool = True


class LimitsConfig(_Table, frozen=True, kw_only=True):
    """How fast, how much at once, and how long to try."""

    requests_per_second: float = 10.0
    burst: int = 1
    concurrency: int = 16
    memory_mb: float = 64.0
    connect_seconds: float = 10.0
    idle_seconds: float = 60.0
    retry_attempts: int = 6
    retry_seconds: float = 600.0
    run_seconds: float = 0.0
    resume_seconds: float = 3600.0


class Bounds(_Table, frozen=True, kw_only=True):
    """What an answer may be at most."""

    body_mb: float = 1024.0
    depth: int = 64
    pages: int = 100_000
    redirects: int = 3
    archive_ratio: float = 200.0


class LakeConfig(_Table, frozen=True, kw_only=True):
    """Where the data go."""

    uri: str = "lake"
    format: Literal["parquet", "delta", "iceberg"] = "parquet"


class ParquetConfig(_Table, frozen=True, kw_only=True):
    """The shape of the files."""

    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    target_file_mb: float = 128.0
    row_group_mb: float = 16.0
    open_files: int = 32


class RunConfig(_Table, frozen=True, kw_only=True):
    """What is read."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: str = "30d"
    allow: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    pii: Literal["keep", "hash", "drop"] = "keep"
    schema: Literal["evolve", "rescue", "fail"] = "evolve"
    engine: Literal["local", "dask"] = "local"


class Checks(_Table, frozen=True, kw_only=True):
    """What must hold before a table is published."""

    unique_key: bool = True
    max_drop: float = 1.0
    min_rows: int = 20
    max_nulls: dict[str, float] = {}
    """Of one table only, as what follows: by column the share of rows that may be without a value."""
    max_age: dict[str, str] = {}
    """By column of times, how old the newest may be."""
    references: dict[str, str] = {}
    """By column the `table.column` that holds each of its values."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are looked at, each once."""
        return tuple(dict.fromkeys((*self.max_nulls, *self.max_age, *self.references)))


class Notify(_Table, frozen=True, kw_only=True):
    """Who is told about a run."""

    url: str = ""


class Account(_Table, frozen=True, kw_only=True):
    """One of several accounts: its name in the lake, and where its key is."""

    name: str
    key_file: str = ""
    key_env: str = ""
    key_command: tuple[str, ...] = ()
    organization: str = ""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a run may be told, checked."""

    source: Source = Source()
    limits: LimitsConfig = LimitsConfig()
    bounds: Bounds = Bounds()
    lake: LakeConfig = LakeConfig()
    parquet: ParquetConfig = ParquetConfig()
    run: RunConfig = RunConfig()
    checks: Checks = Checks()
    table_checks: Mapping[str, Checks] = {}
    notify: Notify = Notify()
    accounts: tuple[Account, ...] = ()
    is_rate_set: bool = False
    """True where the user chose `limits.requests_per_second`: it is then used from the start."""

    def checks_of(self, table: str) -> Checks:
        """The checks of one table."""
        return self.table_checks.get(table, self.checks)


# --- loading ------------------------------------------------------------------------------------------------

_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "source": Source,
    "limits": LimitsConfig,
    "bounds": Bounds,
    "lake": LakeConfig,
    "parquet": ParquetConfig,
    "run": RunConfig,
    "checks": Checks,
    "notify": Notify,
}

_LONGEST_SECONDS = 36_525 * 86_400
_KEY_VARIABLES = frozenset({"SKYSQL_API_KEY", "SKYSQL_API_KEY_FILE"})


def load_config(
    file: Path | None = None,
    *,
    settings: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Config:
    """The configuration in force: `overrides` and `settings` over environment over `file` over defaults.

    `settings` are texts like `limits.concurrency=8`, `overrides` the same with a value that is parsed already.
    Without `file`, `skysql-extract.toml` of the working directory is read if it is there.

    Raises:
        ConfigError: one line with file, key and the nearest valid name.
    """
    directory = directory or Path.cwd()
    environment = os.environ if environment is None else environment
    merged: dict[str, dict[str, object]] = {}
    origin: dict[str, str] = {}
    accounts: object = ()

    def put(dotted: str, value: object, where: str) -> None:
        section, _, key = dotted.partition(".")
        if not key:
            raise ConfigError(f"{where}: names no key of {section}; write table.key")
        merged.setdefault(section, {})[key] = value
        origin[dotted] = where

    path = file if file is not None else directory / DEFAULT_FILE
    if file is not None or path.is_file():
        tables = _read_toml(path)
        accounts = _anchored_accounts(tables.pop("accounts", ()), path.parent)
        for section, table in tables.items():
            _known_section(section, str(path))
            if not isinstance(table, dict):
                raise ConfigError(f"{path}: {section} must be a table: [{section}]")
            for key, value in table.items():
                put(f"{section}.{key}", _anchored(section, key, value, path.parent), str(path))
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name and name not in _KEY_VARIABLES:
            dotted = name[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
            _known_section(dotted.partition(".")[0], name)
            put(dotted, _parse_setting(dotted, text), name)
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write --set table.key=value")
        dotted = dotted.strip()
        _known_section(dotted.partition(".")[0], f"--set {dotted}")
        put(dotted, _parse_setting(dotted, text.strip()), f"--set {dotted}")
    for dotted, value in (overrides or {}).items():
        where = f"--{dotted.rpartition('.')[2]}"
        _known_section(dotted.partition(".")[0], where)
        put(dotted, value, where)
    return _build(merged, origin, accounts, str(path))


def with_run(config: Config, **changes: object) -> Config:
    """The configuration with some keys of `[run]` changed."""
    return msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, **changes))


def _build(
    merged: Mapping[str, dict[str, object]], origin: Mapping[str, str], accounts: object, file: str
) -> Config:
    parts: dict[str, object] = {}
    table_checks: dict[str, Checks] = {}
    for section, kind in _SECTIONS.items():
        given = dict(merged.get(section, {}))
        nested = {}
        if section == "checks":
            names = Checks.__struct_fields__
            nested = {
                key: value for key, value in given.items() if isinstance(value, dict) and key not in names
            }
            given = {key: value for key, value in given.items() if key not in nested}
        parts[section] = _convert(given, kind, section, origin, file)
        for table, values in nested.items():
            table_checks[table] = _convert({**given, **values}, Checks, f"checks.{table}", origin, file)
    parts["accounts"] = _read_accounts(accounts, file)
    config = Config(
        **parts,  # type: ignore[arg-type]  # each part was converted to its own type above
        table_checks=table_checks,
        is_rate_set="limits.requests_per_second" in origin,
    )
    _check(config, origin, file)
    return config


def _convert(
    given: Mapping[str, object], kind: type[T], section: str, origin: Mapping[str, str], file: str
) -> T:
    if not given:
        return kind()  # all that is in it has a default; looking up the types takes longer than the rest
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}  # type: ignore[arg-type]  # a Struct
    for key in given:
        if key not in types:
            where = origin.get(f"{section}.{key}", file)
            raise ConfigError(
                f"{where}: unknown key {section}.{key}{nearest_name(key, set(types), section + '.')}"
            )
    for key, value in given.items():
        try:
            msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            where = origin.get(f"{section}.{key}", file)
            raise ConfigError(f"{where}: {section}.{key}: {_explain(error, value, types[key])}") from error
    return msgspec.convert(given, kind)


def _read_accounts(given: object, file: str) -> tuple[Account, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(table, dict) for table in given):
        raise ConfigError(f"{file}: accounts must be a list of tables: [[accounts]]")
    if not all("name" in table for table in given):
        raise ConfigError(f"{file}: [[accounts]]: each of them needs a name")
    return tuple(_convert(table, Account, "accounts", {}, file) for table in given)


def _check(config: Config, origin: Mapping[str, str], file: str) -> None:
    def refuse(key: str, why: str) -> None:
        raise ConfigError(f"{origin.get(key, file)}: {key} {why}")

    all_checks = {
        "checks": config.checks,
        **{f"checks.{table}": checks for table, checks in config.table_checks.items()},
    }
    positive = {
        "limits.requests_per_second": config.limits.requests_per_second,
        "limits.burst": config.limits.burst,
        "limits.concurrency": config.limits.concurrency,
        "limits.memory_mb": config.limits.memory_mb,
        "limits.connect_seconds": config.limits.connect_seconds,
        "limits.idle_seconds": config.limits.idle_seconds,
        "limits.retry_attempts": config.limits.retry_attempts,
        "bounds.body_mb": config.bounds.body_mb,
        "bounds.depth": config.bounds.depth,
        "bounds.pages": config.bounds.pages,
        "bounds.archive_ratio": config.bounds.archive_ratio,
        "parquet.target_file_mb": config.parquet.target_file_mb,
        "parquet.row_group_mb": config.parquet.row_group_mb,
        "parquet.open_files": config.parquet.open_files,
    }
    for key, value in positive.items():
        if not value > 0 or value == float("inf"):
            refuse(key, f"must be more than 0, and is {value:g}")
    not_negative = {
        "limits.retry_seconds": config.limits.retry_seconds,
        "limits.run_seconds": config.limits.run_seconds,
        "limits.resume_seconds": config.limits.resume_seconds,
        "bounds.redirects": config.bounds.redirects,
        **{f"{where}.min_rows": checks.min_rows for where, checks in all_checks.items()},
    }
    for key, value in not_negative.items():
        if not value >= 0:
            refuse(key, f"must not be negative, and is {value:g}")
    if config.limits.memory_mb < 8:
        refuse("limits.memory_mb", f"must be at least 8, and is {config.limits.memory_mb:g}")
    for where, checks in all_checks.items():
        if not 0 <= checks.max_drop <= 1:
            refuse(f"{where}.max_drop", "is a share between 0 and 1")
        _check_columns(where, checks, refuse)
    for key in ("base_url", "token_url", "keyinfo_url"):
        _check_origin(f"source.{key}", getattr(config.source, key), origin, file)
    if config.run.since != "all":
        try:
            parse_duration(config.run.since)
        except ConfigError as error:
            refuse("run.since", f'is "all" or a time such as "30d": {error.message}')
    if unknown := set(config.run.allow) - {"customer_data"}:
        refuse("run.allow", f"holds {sorted(unknown)[0]!r}; what can be allowed is customer_data")
    if config.lake.format != "parquet":
        refuse("lake.format", f"{config.lake.format} is not supported yet; use parquet")
    if config.run.engine != "local":
        refuse("run.engine", f"{config.run.engine} is not supported yet; use local")
    if config.notify.url:
        refuse("notify.url", "is not supported yet")
    names = [account.name for account in config.accounts]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{file}: [[accounts]]: the name {name!r} stands twice")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
            raise ConfigError(
                f"{file}: [[accounts]]: the name {name!r} may hold letters, digits, _, . and - only"
            )


def _check_columns(where: str, checks: Checks, refuse: Callable[[str, str], None]) -> None:
    """The checks of columns: they are of one table, and say what can be."""
    if where == "checks" and checks.columns:
        kind = next(name for name in ("max_nulls", "max_age", "references") if getattr(checks, name))
        refuse(f"checks.{kind}", f"is for one table: write it as [checks.TABLE.{kind}]")
    for column, share in checks.max_nulls.items():
        if not 0 <= share <= 1:
            refuse(f"{where}.max_nulls.{column}", "is a share between 0 and 1")
    for column, age in checks.max_age.items():
        try:
            parse_duration(age)
        except ConfigError as error:
            refuse(f"{where}.max_age.{column}", f"is a time: {error.message}")
    for column, target in checks.references.items():
        table, dot, other = target.partition(".")
        if not (table and dot and other):
            refuse(f"{where}.references.{column}", f'is {target!r}; write it as "table.column"')


def _check_origin(key: str, url: str, origin: Mapping[str, str], file: str) -> None:
    where = origin.get(key, file)
    # Before anything quotes the URL: a password may stand in it.
    if any(mark in url for mark in "@?#"):
        raise ConfigError(f"{where}: {key} must be a plain URL without user, query or fragment")
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname if parts.port != 0 else None
    except ValueError:  # of a port, or of brackets
        scheme, host = "", None
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if scheme not in ("http", "https") or not host or not is_plain:
        raise ConfigError(f"{where}: {key} must be an https URL, and is {url!r}")
    # A key sent in clear text is a key given away; only this machine itself is exempt.
    if scheme == "http" and not is_loopback(host):
        raise ConfigError(f"{where}: {key} must be https; http is accepted for this machine only")


def is_loopback(host: str) -> bool:
    """True for names and addresses that cannot leave this machine."""
    return host == "localhost" or host == "::1" or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `15m`, `48h`, `30d`, `2w`.

    Raises:
        ConfigError: anything else, or more than a hundred years.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no duration; write 90s, 15m, 48h, 30d or 2w")
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]
    if seconds > _LONGEST_SECONDS:
        raise ConfigError(f"{text!r} is more than a hundred years")
    return seconds


def _read_toml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: a number is too long, or a value nested too deeply") from error


def _known_section(section: str, where: str) -> None:
    if section == "accounts":
        raise ConfigError(f"{where}: [[accounts]] can stand in a configuration file only")
    if section not in _SECTIONS:
        raise ConfigError(
            f"{where}: unknown table {section}{nearest_name(section, {*_SECTIONS, 'accounts'}, '')}"
        )


def _anchored(section: str, key: str, value: object, folder: Path) -> object:
    """Relative paths in a file are relative to that file."""

    def anchor(text: object) -> object:
        if isinstance(text, str) and text and "://" not in text:
            return str(folder / _expanded(text))
        return text

    match section, key, value:
        case ("lake", "uri", _) | ("source" | "accounts", "key_file", _):
            return anchor(value)
        case ("source", "catalogs", list()):
            return [anchor(item) for item in value]
        case _:
            return value


def _anchored_accounts(accounts: object, folder: Path) -> object:
    if not isinstance(accounts, list):
        return accounts
    return [
        {key: _anchored("accounts", key, value, folder) for key, value in account.items()}
        if isinstance(account, dict)
        else account
        for account in accounts
    ]


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user: the name is taken as it stands
        return Path(text)


def _parse_setting(dotted: str, text: str) -> object:
    """The value of `--set` or an environment variable, read as the key's type wants it."""
    section, _, key = dotted.partition(".")
    kind = _SECTIONS[section]
    field = next((field for field in msgspec.structs.fields(kind) if field.name == key), None)
    if field is None:
        return text
    if field.type is str or (
        get_args(field.type) and all(isinstance(item, str) for item in get_args(field.type))
    ):
        return text.strip("\"'") if text[:1] in "\"'" else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        if get_args(field.type):
            return [part.strip() for part in text.split(",") if part.strip()]
        return text


def nearest_name(name: str, valid: set[str], prefix: str) -> str:
    """What an error says of the name that was probably meant, or else of those that there are."""
    close = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else f"; valid are {', '.join(sorted(valid))}"


def _explain(error: msgspec.ValidationError, value: object, wanted: object) -> str:
    choices = get_args(wanted)
    if isinstance(value, str) and choices and all(isinstance(choice, str) for choice in choices):
        return f"{value!r} is none of {', '.join(choices)}"
    return re.sub(r" - at `\$[^`]*`", "", str(error)).replace("Expected", "expected")


# --- the key ------------------------------------------------------------------------------------------------


class SecretText:
    """A text that shows itself only when asked to."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: for a request's header, never for a message."""
        return self._text

    def __repr__(self) -> str:
        return "SecretText(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretText) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not to be written down")


class KeySources(msgspec.Struct, frozen=True, kw_only=True):
    """The places where a key may be: flag, environment, configuration, credentials folder, keyring.

    The environment may hold the key itself, so that none of it is shown.
    """

    file_flag: str = ""
    environment: Mapping[str, str] = {}
    key_file: str = ""
    key_env: str = ""
    key_command: tuple[str, ...] = ()
    keyring: Callable[[], str | None] | None = None

    def __repr__(self) -> str:
        return "KeySources(…)"


def find_key(sources: KeySources) -> SecretText:
    """The API key, from wherever it is; two places that agree are fine.

    Raises:
        ConfigError: two keys that differ, a file that others may read, a command that fails.
        AuthError: no key anywhere.
    """
    found: list[tuple[str, str]] = []
    empty: list[str] = []

    def take(where: str, text: str | None) -> None:
        if text and text.strip():
            found.append((where, text.strip()))
        elif text is not None:
            empty.append(where)

    environment = sources.environment
    if sources.file_flag:
        take("--api-key-file", _read_key_file(Path(sources.file_flag)))
    if sources.key_env:
        take(sources.key_env, environment.get(sources.key_env))
    else:
        if name := environment.get("SKYSQL_API_KEY_FILE"):
            take("SKYSQL_API_KEY_FILE", _read_key_file(Path(name)))
        take("SKYSQL_API_KEY", environment.get("SKYSQL_API_KEY"))
    if sources.key_file:
        take("key_file", _read_key_file(Path(sources.key_file)))
    if sources.key_command:
        take("key_command", _run_key_command(sources.key_command))
    if folder := environment.get("CREDENTIALS_DIRECTORY"):
        credential = Path(folder) / "skysql_api_key"
        if credential.is_file():
            take("$CREDENTIALS_DIRECTORY/skysql_api_key", _read_text(credential))
    if not found and sources.keyring is not None:
        take("the system keyring", sources.keyring())
    if not found:
        why = f" ({' and '.join(empty)} gave nothing)" if empty else ""
        raise AuthError(
            f"no API key{why}: set SKYSQL_API_KEY, or name a file with --api-key-file or source.key_file"
        )
    if len({text for _, text in found}) > 1:
        raise ConfigError(f"{found[0][0]} and {found[1][0]} hold two different API keys; keep one of them")
    key = found[0][1]
    # A header cannot hold these, and an HTTP library would quote the key in its complaint.
    if not key.isascii() or any(not 33 <= ord(character) <= 126 for character in key):
        raise ConfigError(f"the API key in {found[0][0]} holds a blank or a character that no key has")
    return SecretText(key)


def _read_key_file(path: Path) -> str:
    text = _read_text(path)
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        raise ConfigError(f"key file {path} can be read by others; run: chmod 600 {path}")
    return text


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"key file {path}: cannot be read: {error.strerror}") from None
    except ValueError:  # its message would quote the file
        raise ConfigError(f"key file {path}: cannot be read: it is not text") from None


def _run_key_command(command: Sequence[str]) -> str:
    # The command's output may hold the key, so that neither it nor the error is ever repeated.
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(f"key_command {command[0]!r} did not run: {type(error).__name__}") from None
    if answer.returncode != 0:
        raise ConfigError(f"key_command {command[0]!r} ended with exit code {answer.returncode}")
    return answer.stdout
