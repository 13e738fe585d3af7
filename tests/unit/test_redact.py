from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.redact import MASK, redact

KEY = "skysql.1zzz." + "ab12cd34." + "Q7" * 18 + ".0a1b2c3d"
SECRET = 'a+b/c"d\\é f%gh'


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET, safe="")
        .replace("%2B", "%2b")
        .replace("%2F", "%2f")
        .replace("%C3%A9", "%c3%a9")
        .replace("%5C", "%5c"),
        "".join(f"%{byte:02x}" for byte in SECRET.encode()),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        SECRET.encode().hex(),
        repr(SECRET)[1:-1],
    ],
)
def test_a_known_secret_is_taken_out_in_every_encoding(written: str) -> None:
    assert redact(f"before {written} after", [SECRET]) == f"before {MASK} after"


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user:"])
def test_a_secret_inside_a_longer_base64_text_is_taken_out(user: str) -> None:
    encoded = base64.b64encode(f"{user}{KEY}:x".encode()).decode()

    shown = redact(f"sent {encoded}", [KEY])

    left = "".join(shown.removeprefix("sent ").split(MASK))
    assert MASK in shown
    assert len(left) < 16  # what stands of it belongs to the user's name and the last letters


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_key_that_nobody_told_of_is_known_by_its_shape_in_base64_too(offset: int) -> None:
    encoded = base64.b64encode(b"u" * offset + KEY.encode()).decode()

    assert redact(f"sent {encoded} there") == f"sent {MASK} there"


@pytest.mark.parametrize("written", [KEY, KEY.replace(".", "%2E"), KEY.replace(".", "%2e")])
def test_anything_shaped_like_a_key_is_taken_out(written: str) -> None:
    assert redact(f"https://api/?k={written}&x=1") == f"https://api/?k={MASK}&x=1"


def test_the_authenticating_part_of_a_known_key_is_taken_out_alone() -> None:
    assert redact(f"part {KEY.split('.')[3]} of it", [KEY]) == f"part {MASK} of it"


@pytest.mark.parametrize("scheme", ["Bearer", "Token", "bearer", "Basic"])
def test_a_credential_behind_its_scheme_is_taken_out(scheme: str) -> None:
    assert redact(f"{scheme} eyJhbGciOi.J9-4_a= was sent") == f"{scheme} {MASK} was sent"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("X-API-Key: hunter2hunter2", f"X-API-Key: {MASK}"),
        ('{"authorization": "hunter2hunter2"}', f'{{"authorization": "{MASK}"}}'),
        ("?api_key=hunter2hunter2&a=1", f"?api_key={MASK}&a=1"),
        ('{"access_token":"hunter2hunter2","b":1}', f'{{"access_token":"{MASK}","b":1}}'),
    ],
)
def test_the_value_of_a_credential_header_is_taken_out(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "sentence",
    [
        "the bearer token expired; token authentication is refused",
        "services: 12 rows, 3 requests, run=20261122T101112Z-1f2e3d4c",
        "set SKYSQL_API_KEY or --api-key-file FILE",
        'source.auth = "bearer" needs token_url = "https://id.mariadb.com/api/v1/token/"',
        "",
    ],
)
def test_ordinary_sentences_stay_as_they_are(sentence: str) -> None:
    assert redact(sentence, ["", "abc", KEY]) == sentence


@given(
    secret=st.text(min_size=12).filter(lambda text: len(text.strip()) >= 12),
    before=st.text(),
    after=st.text(),
)
def test_no_known_secret_survives(secret: str, before: str, after: str) -> None:
    shown = redact(before + secret + after, [secret])

    assert secret.strip() not in shown
    assert MASK in shown


@given(secret=st.from_regex(r"[A-Za-z0-9+/=_.-]{12,40}", fullmatch=True))
def test_redacting_twice_changes_nothing_more(secret: str) -> None:
    once = redact(f"a {secret} b Bearer {secret}", [secret])

    assert secret not in once
    assert redact(once, [secret]) == once
