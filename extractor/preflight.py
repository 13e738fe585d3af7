"""Is everything in place for a run: the key, its scopes and expiry, what it may read, and the lake."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import urlsplit

from extractor.auth import KeyFacts, read_keyinfo, read_token_answer
from extractor.catalog import load_catalog
from extractor.clock import SystemClock
from extractor.commitlog import CommitLog
from extractor.conceal import Secrets
from extractor.config import Account, Config, SecretText
from extractor.errors import AuthError, ConfigError, LakeError, RedirectRefused, RequestError, StatusError
from extractor.fetch import Fetcher, FetchLimits, Request, Response, parse_date
from extractor.lease import live_runs
from extractor.plan import first_requests, make_plan
from extractor.reader import find_accounts, user_agent
from extractor.stores import open_store

__all__ = ("Finding", "preflight")

_EXPIRY_DAYS = 14
_SKEW_SECONDS = 60
_ENDS = (4, 10)
"""A run ends with these only if they are of all accounts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `is_good` is None for what is neither good nor bad, or a warning.

    `exit_code` is what a run would end with for this, 0 where it would not end.
    """

    name: str
    is_good: bool | None
    text: str
    remedy: str = ""
    exit_code: int = 0


async def preflight(
    config: Config, *, key_file: str = "", environment: Mapping[str, str] | None = None
) -> tuple[Finding, ...]:
    """Look at everything that a run needs, and change nothing that stays.

    Raises:
        ConfigError: the configuration itself is wrong.
    """
    environment = os.environ if environment is None else environment
    findings = _lake(config)
    try:
        accounts = find_accounts(config, key_file, environment)
    except AuthError as error:
        return (*findings, Finding(name="key", is_good=False, text=error.message, exit_code=4))
    found = [await _account(config, account, key) for account, key in accounts]
    return (*findings, *_weighed(found))


def _weighed(accounts: Sequence[Sequence[Finding]]) -> Iterator[Finding]:
    """What was found of all accounts; what would end a run is 3 where other accounts can be read all the same."""
    codes = [{finding.exit_code for finding in found} for found in accounts]
    for finding in (finding for found in accounts for finding in found):
        is_alone = finding.exit_code in _ENDS and not all(finding.exit_code in others for others in codes)
        yield replace(finding, exit_code=3) if is_alone else finding


def _lake(config: Config) -> list[Finding]:
    try:
        store = open_store(config.lake.uri)
        store.check_writable()
        findings = [Finding(name="lake", is_good=True, text=f"{store.uri} can be written")]
        if not store.has_folder_exchange:
            text = (
                "folders cannot be exchanged there: while `compact` publishes, readers by glob may miss rows"
            )
            findings.append(Finding(name="lake", is_good=None, text=text, remedy="let them read by the log"))
    except LakeError as error:
        return [Finding(name="lake", is_good=False, text=error.message, exit_code=7)]
    with suppress(LakeError):  # what is wrong with the log is for a run to tell
        if CommitLog(store).newest() is None and not live_runs(store):
            store.withdraw()
    return findings


async def _account(config: Config, account: Account, key: SecretText) -> list[Finding]:
    secrets = Secrets()
    secrets.add(key.reveal())
    found = await _findings(config, account, key, secrets)
    return [replace(finding, text=secrets.text(finding.text)) for finding in found]


async def _findings(config: Config, account: Account, key: SecretText, secrets: Secrets) -> list[Finding]:
    name = f"account {account.name}"
    async with AsyncExitStack() as stack:

        async def fetcher(url: str) -> Fetcher:
            limits = config.limits
            return await stack.enter_async_context(
                Fetcher(
                    url,
                    limits=FetchLimits(
                        connect_seconds=limits.connect_seconds, idle_seconds=min(limits.idle_seconds, 30)
                    ),
                    clock=SystemClock(),
                    user_agent=user_agent(),
                    spool_folder=lambda: Path(gettempdir()),
                )
            )

        findings: list[Finding] = []
        headers = {"X-API-Key": key.reveal()}
        if config.source.auth == "bearer":
            try:
                findings.extend(_judge_key(await _keyinfo(config, key, fetcher), name))
                token = await _token(config, key, fetcher)
                secrets.add(token)
                headers = {"Authorization": f"Bearer {token}"}
            except (RequestError, AuthError) as error:
                return [*findings, _refused(name, error)]
        else:
            text = "API keys of this kind have no expiry or scopes that could be asked for (source.auth = api_key)"
            findings.append(Finding(name=f"{name}: key", is_good=None, text=text))
        if account.organization:
            headers["X-MDB-Org"] = account.organization
        api = await fetcher(config.source.base_url)
        return [*findings, *await _readable(config, api, headers, name)]


async def _token(config: Config, key: SecretText, fetcher: object) -> str:
    response = await _identity(config.source.token_url, "POST", key, fetcher)
    return read_token_answer(response.read(), date_header=parse_date(response.headers.get("date", ""))).token


async def _keyinfo(config: Config, key: SecretText, fetcher: object) -> KeyFacts:
    response = await _identity(config.source.keyinfo_url, "GET", key, fetcher)
    return read_keyinfo(response.read())


async def _identity(url: str, method: str, key: SecretText, fetcher: object) -> Response:
    parts = urlsplit(url)
    assert callable(fetcher)
    there: Fetcher = await fetcher(f"{parts.scheme}://{parts.netloc}")
    headers = (("Authorization", f"Token {key.reveal()}"), ("Content-Length", "0"))
    return await there.fetch(Request(method=method, path=parts.path or "/", headers=headers))


def _judge_key(facts: KeyFacts, name: str) -> list[Finding]:
    findings = []
    writes = [scope for scope in facts.scopes if "write" in scope.lower()]
    if writes:
        findings.append(
            Finding(
                name=f"{name}: scopes",
                is_good=None,
                text=f"the key may write: {', '.join(writes)}",
                remedy="reading is enough: generate a key with read scopes only",
            )
        )
    else:
        scopes = ", ".join(facts.scopes) or "none given"
        findings.append(Finding(name=f"{name}: scopes", is_good=True, text=scopes))
    if facts.exp is None:
        findings.append(Finding(name=f"{name}: expiry", is_good=None, text="the key names no end"))
        return findings
    days = (facts.exp - datetime.now(UTC)).total_seconds() / 86_400
    if days < 0:
        text = f"the key expired on {facts.exp:%Y-%m-%d}"
        findings.append(
            Finding(
                name=f"{name}: expiry", is_good=False, text=text, remedy="generate a new key", exit_code=4
            )
        )
    else:
        is_good = True if days > _EXPIRY_DAYS else None
        text = f"the key expires on {facts.exp:%Y-%m-%d}, in {days:.0f} days"
        remedy = "" if is_good else "generate a new key soon"
        findings.append(Finding(name=f"{name}: expiry", is_good=is_good, text=text, remedy=remedy))
    return findings


async def _readable(config: Config, api: Fetcher, headers: Mapping[str, str], name: str) -> list[Finding]:
    """Ask one page of each family of endpoints, which is what tells whether the key may read it."""
    catalog = load_catalog([Path(folder) for folder in config.source.catalogs], builtin=config.source.builtin)
    plan = make_plan(catalog.endpoints, config)
    families: dict[str, list[str]] = {}
    probes: dict[str, Request] = {}
    for planned in plan.active:
        family = planned.endpoint.path.split("/")[1]
        families.setdefault(family, []).append(planned.name)
        first = next(iter(first_requests(planned.endpoint, name, ())), None)
        if first is not None and planned.endpoint.origin != "user" and family not in probes:
            probes[family] = Request(
                method=planned.endpoint.method,
                path=first.path,
                query=_small(first.query),
                headers=tuple(headers.items()),
            )
    findings: list[Finding] = []
    statuses: list[int] = []
    for family, request in probes.items():
        finding, status = await _probe(api, request, f"{name}: {family}")
        statuses.append(status)
        findings.append(finding)
    if probes and set(statuses) == {401}:
        text = "the key is refused everywhere: it is wrong, expired or revoked"
        return [
            Finding(name=f"{name}: key", is_good=False, text=text, remedy="generate a new key", exit_code=4)
        ]
    if probes and set(statuses) <= {401, 403}:  # it may read nothing at all
        return [replace(finding, exit_code=4) for finding in findings]
    if any(statuses):  # the source was reached
        return [replace(finding, exit_code=min(finding.exit_code, 3)) for finding in findings]
    return findings


async def _probe(api: Fetcher, request: Request, name: str) -> tuple[Finding, int]:
    """What one request comes to, and its status; 0 if there was no answer."""
    try:
        response = await api.fetch(request)
    except StatusError as error:
        text = f"{request.path} answers {error.status}"
        if error.status in (400, 404):
            return Finding(name=name, is_good=None, text=text), error.status
        is_denied = error.status in (401, 403)
        remedy = (
            "give the key's user a role that may read it, or exclude it" if is_denied else "try again later"
        )
        return Finding(name=name, is_good=False, text=text, remedy=remedy, exit_code=3), error.status
    except RedirectRefused as error:
        remedy = "check source.base_url"
        return Finding(name=name, is_good=False, text=error.message, remedy=remedy, exit_code=3), 302
    except RequestError as error:
        remedy = "check source.base_url"
        return Finding(name=name, is_good=False, text=error.message, remedy=remedy, exit_code=10), 0
    response.discard()
    skew = response.server_date - response.received_at if response.server_date else None
    if skew is not None and abs(skew.total_seconds()) > _SKEW_SECONDS:
        text = f"readable; this machine's clock differs from the server's by {skew.total_seconds():.0f} s"
        return Finding(name=name, is_good=None, text=text, remedy="set the clock"), response.status
    return Finding(name=name, is_good=True, text="readable"), response.status


def _small(query: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((key, "1" if key == "page_size" else value) for key, value in query)


def _refused(name: str, error: RequestError | AuthError) -> Finding:
    if isinstance(error, AuthError) or (isinstance(error, StatusError) and error.status in (400, 401, 403)):
        return Finding(
            name=f"{name}: key",
            is_good=False,
            text="the key is refused: it is wrong, expired or revoked",
            remedy="generate a new key",
            exit_code=4,
        )
    if isinstance(error, ConfigError):
        return Finding(name=f"{name}: key", is_good=False, text=error.message, exit_code=2)
    return Finding(
        name=f"{name}: key", is_good=False, text=error.message, remedy="check source.token_url", exit_code=10
    )
