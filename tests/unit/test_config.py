from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.config import (
    Account,
    Checks,
    Config,
    KeySources,
    LakeConfig,
    LimitsConfig,
    RunConfig,
    SecretText,
    Source,
    find_key,
    is_loopback,
    load_config,
    parse_duration,
)
from extractor.errors import AuthError, ConfigError

CANARY = "canary-0123456789-abcdefghij"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the configuration file and give its path."""

    def write(text: str) -> Path:
        file = tmp_path / "skysql-extract.toml"
        file.write_text(text)
        return file

    return write


def load(file: Path | None = None, *settings: str, **environment: str) -> Config:
    folder = file.parent if file is not None else Path("/nonexistent")
    return load_config(file, settings=settings, environment=environment, directory=folder)


def refusal(file: Path | None = None, *settings: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, *settings, **environment)
    return caught.value.message


# --- precedence ---------------------------------------------------------------------------------------------


def test_without_a_file_everything_has_its_default() -> None:
    assert load() == Config()


def test_a_file_in_the_working_directory_is_read_unasked(write: Write) -> None:
    file = write("[limits]\nburst = 3\n")

    config = load_config(environment={}, directory=file.parent)

    assert config == Config(limits=LimitsConfig(burst=3))


def test_flags_win_over_the_environment_and_that_over_the_file_and_that_over_the_defaults(
    write: Write,
) -> None:
    file = write("[limits]\nburst = 2\nconcurrency = 2\nretry_attempts = 2\nidle_seconds = 2\n")

    config = load_config(
        file,
        settings=["limits.concurrency=4", "limits.retry_attempts=4"],
        overrides={"limits.retry_attempts": 5},
        environment={
            "SKYSQL_LIMITS__BURST": "3",
            "SKYSQL_LIMITS__CONCURRENCY": "3",
            "SKYSQL_LIMITS__RETRY_ATTEMPTS": "3",
        },
    )

    assert config == Config(limits=LimitsConfig(burst=3, concurrency=4, retry_attempts=5, idle_seconds=2.0))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("runn.include", "--include: unknown table runn; did you mean run?"),
        ("run.includ", "--includ: unknown key run.includ; did you mean run.include?"),
        ("run", "--run: names no key of run; write table.key"),
    ],
)
def test_an_override_that_names_no_setting_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(environment={}, overrides={name: ("services",)})

    assert caught.value.message == told


def test_variables_that_are_no_settings_are_passed_over() -> None:
    config = load(
        SKYSQL_API_KEY=CANARY,
        SKYSQL_API_KEY_FILE="/x",
        SKYSQL_EXTRACTOR_TEST_INSTALLED="1",
        LIMITS__BURST="9",
    )

    assert config == Config()


@pytest.mark.parametrize(
    ("text", "include"),
    [
        ("services", ("services",)),
        ("services, backups*", ("services", "backups*")),
        ('["services", "backups*"]', ("services", "backups*")),
    ],
)
def test_a_list_may_be_set_as_toml_or_with_commas(text: str, include: tuple[str, ...]) -> None:
    expected = Config(run=RunConfig(include=include))

    assert load(None, f"run.include={text}") == expected
    assert load(SKYSQL_RUN__INCLUDE=text) == expected


def test_a_text_is_set_with_or_without_quotes_and_is_never_taken_for_a_number() -> None:
    assert load(None, "source.organization=42").source.organization == "42"
    assert load(None, 'source.organization="a b"').source.organization == "a b"
    assert load(None, "lake.uri=s3://bucket/lake?x=1").lake.uri == "s3://bucket/lake?x=1"


@pytest.mark.parametrize("rate", ["10", "10.0", "3"])
def test_a_rate_that_the_user_chose_is_told_from_the_default(rate: str) -> None:
    assert not load().is_rate_set
    assert load(None, f"limits.requests_per_second={rate}").is_rate_set
    assert load(SKYSQL_LIMITS__REQUESTS_PER_SECOND=rate).is_rate_set


# --- paths --------------------------------------------------------------------------------------------------


def test_relative_paths_of_a_file_are_relative_to_it(write: Write) -> None:
    file = write(
        """
        [source]
        key_file = "keys/main"
        catalogs = ["endpoints", "/abs/endpoints"]
        [lake]
        uri = "data/lake"
        [[accounts]]
        name = "eu"
        key_file = "keys/eu"
        [[accounts]]
        name = "us"
        key_file = "/run/keys/us"
        """
    )
    folder = file.parent

    assert load(file) == Config(
        source=Source(
            key_file=str(folder / "keys/main"), catalogs=(str(folder / "endpoints"), "/abs/endpoints")
        ),
        lake=LakeConfig(uri=str(folder / "data/lake")),
        accounts=(
            Account(name="eu", key_file=str(folder / "keys/eu")),
            Account(name="us", key_file="/run/keys/us"),
        ),
    )


@pytest.mark.parametrize("uri", ["/srv/lake", "s3://bucket/lake", "gs://bucket", "abfss://a@b/c"])
def test_absolute_paths_and_urls_of_a_file_stay_as_they_are(write: Write, uri: str) -> None:
    assert load(write(f"[lake]\nuri = '{uri}'\n")).lake.uri == uri


def test_a_tilde_is_the_home_folder_where_there_is_one(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    assert load(write("[lake]\nuri = '~/lake'\n")).lake.uri == "/home/me/lake"
    assert load(write("[lake]\nuri = '~no-such-user/lake'\n")).lake.uri == str(
        tmp_path / "~no-such-user/lake"
    )


def test_relative_paths_of_flags_and_variables_are_left_to_the_working_directory(write: Write) -> None:
    file = write("")

    assert load(file, "lake.uri=there").lake.uri == "there"
    assert load(file, SKYSQL_LAKE__URI="there").lake.uri == "there"


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[limits]\nconcurency = 8\n",
            "unknown key limits.concurency; did you mean limits.concurrency?",
        ),
        ("[limit]\nburst = 1\n", "unknown table limit; did you mean limits?"),
        ("[account]\nname = 'a'\n", "unknown table account; did you mean accounts?"),
        (
            "[lake]\nzzz = 1\n",
            "unknown key lake.zzz; valid are format, uri",
        ),
        ("lake = 'here'\n", "lake must be a table: [lake]"),
        ("[source]\nauth = 'xx'\n", "source.auth: 'xx' is none of api_key, bearer"),
        ("[run]\npii = 'hide'\n", "run.pii: 'hide' is none of keep, hash, drop"),
        ("[run]\nschema = 1\n", "run.schema: expected `str`, got `int`"),
        ("[limits]\nconcurrency = 'many'\n", "limits.concurrency: expected `int`, got `str`"),
        ("[limits]\nconcurrency = 1.5\n", "limits.concurrency: expected `int`, got `float`"),
        ("[limits]\nconcurrency = true\n", "limits.concurrency: expected `int`, got `bool`"),
        ("[run]\ninclude = 'services'\n", "run.include: expected `array`, got `str`"),
        ("[run]\ninclude = [1]\n", "run.include: expected `str`, got `int`"),
        ("[limits]\nrequests_per_second = 0\n", "limits.requests_per_second must be more than 0, and is 0"),
        (
            "[limits]\nrequests_per_second = -2\n",
            "limits.requests_per_second must be more than 0, and is -2",
        ),
        (
            "[limits]\nrequests_per_second = nan\n",
            "limits.requests_per_second must be more than 0, and is nan",
        ),
        ("[limits]\nconcurrency = 0\n", "limits.concurrency must be more than 0, and is 0"),
        ("[limits]\nmemory_mb = 1\n", "limits.memory_mb must be at least 8, and is 1"),
        ("[limits]\nrun_seconds = -1\n", "limits.run_seconds must not be negative, and is -1"),
        ("[bounds]\nredirects = -1\n", "bounds.redirects must not be negative, and is -1"),
        ("[parquet]\nopen_files = 0\n", "parquet.open_files must be more than 0, and is 0"),
        ("[checks]\nmax_drop = 2.0\n", "checks.max_drop is a share between 0 and 1"),
        ("[checks]\nmax_drop = {}\n", "checks.max_drop: expected `float`, got `object`"),
        ("[checks.services]\nmax_drop = 7\n", "checks.services.max_drop is a share between 0 and 1"),
        ("[checks.services]\nmin_rows = -7\n", "checks.services.min_rows must not be negative, and is -7"),
        (
            "[checks]\nmax_nulls = { id = 0.0 }\n",
            "checks.max_nulls is for one table: write it as [checks.TABLE.max_nulls]",
        ),
        (
            "[checks.services.max_nulls]\nid = 3\n",
            "checks.services.max_nulls.id is a share between 0 and 1",
        ),
        (
            "[checks.services]\nmax_nulls = { id = true }\n",
            "checks.services.max_nulls: expected `float`, got `bool`",
        ),
        ("[checks.services]\nmax_nulls = 0.5\n", "checks.services.max_nulls: expected `object`, got `float`"),
        (
            "[checks.services.max_age]\nseen = '3 years'\n",
            "checks.services.max_age.seen is a time: '3 years' is no duration; write 90s, 15m, 48h, 30d or 2w",
        ),
        (
            "[checks.services.references]\nid = 'regions'\n",
            "checks.services.references.id is 'regions'; write it as \"table.column\"",
        ),
        (
            "[checks.services]\nmaxdrop = 0\n",
            "unknown key checks.services.maxdrop; did you mean checks.services.max_drop?",
        ),
        (
            "[run]\nsince = '1y'\n",
            """run.since is "all" or a time such as "30d": '1y' is no duration; write 90s, 15m, 48h, 30d or 2w""",
        ),
        ("[run]\nallow = ['logs']\n", "run.allow holds 'logs'; what can be allowed is customer_data"),
        ("[lake]\nformat = 'delta'\n", "lake.format delta is not supported yet; use parquet"),
        ("[run]\nengine = 'dask'\n", "run.engine dask is not supported yet; use local"),
        ("[notify]\nurl = 'https://a'\n", "notify.url is not supported yet"),
        ("accounts = 3\n", "accounts must be a list of tables: [[accounts]]"),
        ("[accounts]\nname = 'a'\n", "accounts must be a list of tables: [[accounts]]"),
        ("[[accounts]]\nkey_env = 'A'\n", "[[accounts]]: each of them needs a name"),
        (
            "[[accounts]]\nname = 'a'\nkey_fil = 'x'\n",
            "unknown key accounts.key_fil; did you mean accounts.key_file?",
        ),
        ("[[accounts]]\nname = 1\n", "accounts.name: expected `str`, got `int`"),
        (
            "[[accounts]]\nname = 'a'\n[[accounts]]\nname = 'a'\n",
            "[[accounts]]: the name 'a' stands twice",
        ),
        (
            "[[accounts]]\nname = '../a'\n",
            "[[accounts]]: the name '../a' may hold letters, digits, _, . and - only",
        ),
    ],
)
def test_what_a_file_says_wrongly_is_one_line_with_file_and_key(
    write: Write, text: str, message: str
) -> None:
    file = write(text)

    assert refusal(file) == f"{file}: {message}"


def test_the_place_of_a_wrong_value_is_named_wherever_it_was_said(write: Write) -> None:
    file = write("[limits]\nburst = 2\n")

    assert refusal(file, "limits.burst=0") == (
        "--set limits.burst: limits.burst must be more than 0, and is 0"
    )
    assert refusal(file, SKYSQL_LIMITS__BURST="x") == (
        "SKYSQL_LIMITS__BURST: limits.burst: expected `int`, got `str`"
    )
    assert refusal(file, SKYSQL_LIMIT__BURST="2") == (
        "SKYSQL_LIMIT__BURST: unknown table limit; did you mean limits?"
    )
    assert refusal(file, "limits.bursts=2") == (
        "--set limits.bursts: unknown key limits.bursts; did you mean limits.burst?"
    )
    assert refusal(file, "limits.burst") == "--set limits.burst: write --set table.key=value"
    assert refusal(file, "limits=3") == "--set limits: names no key of limits; write table.key"
    assert refusal(file, "accounts.name=x") == (
        "--set accounts.name: [[accounts]] can stand in a configuration file only"
    )
    assert refusal(file, SKYSQL_LIMITS__="3") == "SKYSQL_LIMITS__: names no key of limits; write table.key"


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path, write: Write) -> None:
    missing = tmp_path / "missing.toml"
    broken = write("[limits\n")

    assert refusal(missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(broken).startswith(f"{broken}: is not TOML: ")
    broken.write_bytes(b"# \xff\n")
    assert refusal(broken).startswith(f"{broken}: is not TOML: ")


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_a_value_beyond_what_toml_can_be_read_of_is_refused_as_any_other(value: str, write: Write) -> None:
    broken = write("limits = " + value)

    assert refusal(broken) == f"{broken}: a number is too long, or a value nested too deeply"
    assert refusal(write(""), "limits.burst=" + value).startswith("--set limits.burst: ")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("api.skysql.com", "must be an https URL, and is 'api.skysql.com'"),
        ("ftp://api", "must be an https URL, and is 'ftp://api'"),
        ("https://", "must be an https URL, and is 'https://'"),
        ("https://[::1", "must be an https URL, and is 'https://[::1'"),
        ("https://api:port", "must be an https URL, and is 'https://api:port'"),
        ("https://api:99999", "must be an https URL, and is 'https://api:99999'"),
        ("https://a pi", "must be an https URL, and is 'https://a pi'"),
        ("https://api/?a=1", "must be a plain URL without user, query or fragment"),
        ("https://api/#a", "must be a plain URL without user, query or fragment"),
        (f"https://me:{CANARY}@api", "must be a plain URL without user, query or fragment"),
        (f"ftp://me:{CANARY}@api", "must be a plain URL without user, query or fragment"),
        ("http://api.skysql.com", "must be https; http is accepted for this machine only"),
        ("http://127.0.0.1.example.com", "must be https; http is accepted for this machine only"),
    ],
)
@pytest.mark.parametrize("key", ["base_url", "token_url", "keyinfo_url"])
def test_a_url_to_which_a_key_must_not_go_is_refused_and_no_password_shown(
    write: Write, key: str, url: str, message: str
) -> None:
    file = write(f"[source]\n{key} = '{url}'\n")

    assert refusal(file) == f"{file}: source.{key} {message}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "[::1]"])
def test_this_machine_may_be_asked_in_clear_text(host: str) -> None:
    url = f"http://{host}:8080"

    assert load(None, f"source.base_url={url}").source.base_url == url


def test_only_addresses_that_stay_on_this_machine_are_loopback() -> None:
    hosts = [
        "localhost",
        "::1",
        "127.0.0.1",
        "127.1.2.3",
        "localhost.example.com",
        "127.0.0.1.nip",
        "10.0.0.1",
    ]

    assert [host for host in hosts if is_loopback(host)] == hosts[:4]


# --- checks of a table --------------------------------------------------------------------------------------


def test_the_checks_of_a_table_start_from_those_of_all(write: Write) -> None:
    file = write(
        "[checks]\nmax_drop = 0.5\n[checks.services]\nmin_rows = 3\n[checks.bills]\nmax_drop = 0.1\n"
    )

    config = load(file, "checks.unique_key=false")

    assert config.checks_of("services") == Checks(unique_key=False, max_drop=0.5, min_rows=3)
    assert config.checks_of("bills") == Checks(unique_key=False, max_drop=0.1)
    assert config.checks_of("regions") == config.checks == Checks(unique_key=False, max_drop=0.5)


# --- durations ----------------------------------------------------------------------------------------------


@given(
    st.integers(0, 5_000), st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604800)])
)
def test_a_duration_is_a_number_and_a_unit(number: int, unit: tuple[str, int]) -> None:
    assert parse_duration(f"{number}{unit[0]}") == number * unit[1]
    assert parse_duration(f" {number} {unit[0]} ") == number * unit[1]


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1.d", "1d1h", "1D", "inf d"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)

    assert caught.value.message == f"{text!r} is no duration; write 90s, 15m, 48h, 30d or 2w"


@pytest.mark.parametrize("text", ["36526d", "5218w", "999999999999d", "9" * 400 + "s"])
def test_a_duration_is_at_most_a_hundred_years(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)

    assert caught.value.message == f"{text!r} is more than a hundred years"


# --- the key ------------------------------------------------------------------------------------------------


def key_file(path: Path, content: str | bytes = CANARY, mode: int = 0o600) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


def key_sources(place: str, folder: Path) -> KeySources:
    match place:
        case "flag":
            return KeySources(file_flag=key_file(folder / "key", f"{CANARY}\n"))
        case "file variable":
            return KeySources(environment={"SKYSQL_API_KEY_FILE": key_file(folder / "key")})
        case "variable":
            return KeySources(environment={"SKYSQL_API_KEY": f" {CANARY}\n"})
        case "variable of an account":
            return KeySources(environment={"KEY_EU": CANARY, "SKYSQL_API_KEY": "another"}, key_env="KEY_EU")
        case "file":
            return KeySources(key_file=key_file(folder / "key", mode=0o400))
        case "command":
            return KeySources(key_command=("printf", "%s\\n", CANARY))
        case "credentials folder":
            key_file(folder / "skysql_api_key", mode=0o444)  # its folder keeps others out
            return KeySources(environment={"CREDENTIALS_DIRECTORY": str(folder)})
        case _:
            return KeySources(keyring=lambda: CANARY)


PLACES = [
    "flag",
    "file variable",
    "variable",
    "variable of an account",
    "file",
    "command",
    "credentials folder",
    "keyring",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_key_is_found_wherever_it_may_be(place: str, tmp_path: Path) -> None:
    assert find_key(key_sources(place, tmp_path)).reveal() == CANARY


def test_two_places_with_the_same_key_agree(tmp_path: Path) -> None:
    sources = KeySources(
        file_flag=key_file(tmp_path / "key"),
        environment={"SKYSQL_API_KEY": CANARY},
        key_command=("echo", CANARY),
    )

    assert find_key(sources) == SecretText(CANARY)


def test_two_keys_that_differ_are_refused_by_their_places_alone(tmp_path: Path) -> None:
    sources = KeySources(environment={"SKYSQL_API_KEY": f"{CANARY}2"}, key_file=key_file(tmp_path / "key"))

    with pytest.raises(ConfigError) as caught:
        find_key(sources)

    assert caught.value.message == (
        "SKYSQL_API_KEY and key_file hold two different API keys; keep one of them"
    )


def test_the_keyring_is_asked_last() -> None:
    def keyring() -> str:
        raise AssertionError("there is a key already")

    sources = KeySources(environment={"SKYSQL_API_KEY": CANARY}, keyring=keyring)

    assert find_key(sources).reveal() == CANARY


@pytest.mark.parametrize(
    ("sources", "why"),
    [
        (KeySources(), ""),
        (KeySources(environment={"SKYSQL_API_KEY": " \n"}), " (SKYSQL_API_KEY gave nothing)"),
        (KeySources(environment={"SKYSQL_API_KEY": CANARY}, key_env="KEY_EU"), ""),
        (KeySources(key_command=("true",)), " (key_command gave nothing)"),
        (KeySources(keyring=lambda: None), ""),
    ],
)
def test_no_key_is_a_fault_of_the_key_that_says_what_to_do(sources: KeySources, why: str) -> None:
    with pytest.raises(AuthError) as caught:
        find_key(sources)

    assert caught.value.message == (
        f"no API key{why}: set SKYSQL_API_KEY, or name a file with --api-key-file or source.key_file"
    )


def test_an_empty_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    (tmp_path / "key").chmod(0o600)

    with pytest.raises(AuthError, match=r"no API key \(--api-key-file gave nothing\)"):
        find_key(KeySources(file_flag=str(tmp_path / "key")))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_key_file_that_others_may_touch_is_refused_with_the_remedy(mode: int, tmp_path: Path) -> None:
    path = key_file(tmp_path / "key", mode=mode)

    with pytest.raises(ConfigError) as caught:
        find_key(KeySources(key_file=path))

    assert caught.value.message == f"key file {path} can be read by others; run: chmod 600 {path}"


def errors_of(sources: KeySources) -> str:
    """The message, and all that a traceback would show of the errors behind it."""
    with pytest.raises(ConfigError) as caught:
        find_key(sources)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.message


def test_a_key_file_that_is_missing_or_no_text_is_named_without_its_content(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    binary = key_file(tmp_path / "binary", CANARY.encode() + b"\xff")
    credential = Path(key_file(tmp_path / "skysql_api_key", CANARY.encode() + b"\xff"))

    assert errors_of(KeySources(key_file=str(missing))) == (
        f"key file {missing}: cannot be read: No such file or directory"
    )
    assert errors_of(KeySources(file_flag=binary)) == f"key file {binary}: cannot be read: it is not text"
    assert errors_of(KeySources(environment={"CREDENTIALS_DIRECTORY": str(tmp_path)})) == (
        f"key file {credential}: cannot be read: it is not text"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sh", "-c", f"echo {CANARY}; echo {CANARY} >&2; exit 3"), "'sh' ended with exit code 3"),
        (("no-such-command-here",), "'no-such-command-here' did not run: FileNotFoundError"),
        (("printf", f"{CANARY}\\377"), "'printf' did not run: UnicodeDecodeError"),
    ],
)
def test_a_key_command_that_fails_is_told_without_its_output(command: tuple[str, ...], message: str) -> None:
    assert errors_of(KeySources(key_command=command)) == f"key_command {message}"


@pytest.mark.parametrize("key", [f"{CANARY} x", f"{CANARY}\nx", f"{CANARY}é", f"{CANARY}\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    assert errors_of(KeySources(environment={"SKYSQL_API_KEY": key})) == (
        "the API key in SKYSQL_API_KEY holds a blank or a character that no key has"
    )


def test_a_secret_shows_itself_to_nobody_who_does_not_ask() -> None:
    secret = SecretText(CANARY)

    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!s:>30}",
        repr({"key": (secret,)}),
        "{}".format(secret),  # noqa: UP032  # another way to the text than an f-string
    ]

    assert secret.reveal() == CANARY
    assert [text for text in shown if CANARY in text] == []
    assert repr(secret) == "SecretText(…)"
    assert (secret == SecretText(CANARY), secret == SecretText("x"), secret == CANARY) == (True, False, False)
    assert len({secret, SecretText(CANARY)}) == 1


@pytest.mark.parametrize("write_down", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_never_written_down(write_down: Callable[[SecretText], object]) -> None:
    with pytest.raises(TypeError, match=r"^a secret is not to be written down$"):
        write_down(SecretText(CANARY))


def test_the_places_of_a_key_do_not_show_the_environment() -> None:
    assert repr(KeySources(environment={"SKYSQL_API_KEY": CANARY})) == "KeySources(…)"
