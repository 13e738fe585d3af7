"""A text as it may be shown: without the secrets that are known, and without anything shaped like one.

Redaction is the last fence, not the first: messages are written without credentials. It is there for texts
that others wrote, such as a server's error body or a traceback.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

__all__ = ("MASK", "redact")

MASK = "[redacted]"

_SHORTEST = 4  # a "secret" of three letters would take ordinary words out of every text

# A dot may have been percent-encoded on the way.
_KEY = re.compile(
    r"skysql(?:\.|%2e)[0-9a-z]{4}(?:\.|%2e)[0-9a-z]{8}(?:\.|%2e)[A-Za-z0-9]{36}(?:\.|%2e)[0-9a-f]{8}",
    re.IGNORECASE,
)
# "Token expired" is a sentence, "Token 4f1c…" a credential: one has a digit, or is longer than words are.
_SCHEME = re.compile(
    r"\b(Bearer|Token|Basic)((?:\s|%20|\+)+)(?=[^\s\"'<>]*\d|[^\s\"'<>,;:()]{24})[A-Za-z0-9._~+/%-]{8,}=*",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(\b(?:x-api-key|authorization|api[_-]?key|access_token|refresh_token)\b[\"']?\s*[:=]\s*[\"']?)"
    r"(?!\[redacted\]|(?:Bearer|Token|Basic)\s+\[redacted\])((?:(?:Bearer|Token|Basic)\s+)?[^\s\"',;&\\]{8,})",
    re.IGNORECASE,
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with `[redacted]` in place of each secret, plain or encoded, and of all that looks like one.

    Known encodings: percent, base64 (at any alignment, also inside `user:password`), hexadecimal, JSON, HTML
    and Python escapes, in other letters, from the end. Redacting twice changes nothing more.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    # The longest first: a short form may be a part of a long one, and would leave the rest standing.
    for form in sorted(forms, key=lambda form: (-len(form), form)):
        text = text.replace(form, MASK)
    text = _KEY.sub(MASK, text)
    text = _ENCODED_KEY.sub(MASK, text)
    text = _SCHEME.sub(rf"\1\2{MASK}", text)
    return _HEADER.sub(rf"\1{MASK}", text)


@functools.lru_cache(maxsize=64)
def _forms(secret: str) -> frozenset[str]:
    secret = secret.strip()
    if len(secret) < _SHORTEST:
        return frozenset()
    whole = _encodings(secret)
    parts = secret.split(".")
    if _KEY.fullmatch(secret) and len(parts) == 5:
        whole |= _encodings(parts[3])  # the part that authenticates, should a key have been cut
    return frozenset(whole)


def _encodings(secret: str) -> set[str]:
    raw = secret.encode()
    every_byte = "".join(f"%{byte:02X}" for byte in raw)
    forms = {
        secret,
        secret.lower(),  # as the name of a host
        secret.upper(),
        secret[::-1],
        quote(secret, safe=""),
        re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")),
        quote_plus(secret),
        quote(secret, safe="").replace(".", "%2E"),
        quote(secret, safe="").replace(".", "%2e"),
        every_byte,
        every_byte.lower(),
        raw.hex(),
        raw.hex().upper(),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        html.escape(secret),
        repr(secret)[1:-1],
    }
    forms.update(_base64_forms(raw))
    return {form for form in forms if len(form) >= _SHORTEST}


def _base64_forms(raw: bytes) -> set[str]:
    """Base64 of the secret alone, and what of it stays the same wherever it stands in a longer text."""
    forms: set[str] = set()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        alone = encode(raw).decode()
        forms |= {alone, alone.rstrip("="), quote(alone, safe="")}
        forms |= {core for offset in range(3) if len(core := _core(raw, offset, encode)) >= 8}
    return forms


def _core(raw: bytes, offset: int, encode: object = base64.b64encode) -> str:
    """The base64 characters that depend on `raw` alone when `offset` (mod 3) bytes stand before it."""
    assert callable(encode)
    text: str = encode(b"\0" * offset + raw).decode().rstrip("=")
    bits_before, bits = 8 * offset, 8 * (offset + len(raw))
    return text[-(-bits_before // 6) : bits // 6]


# The start of every key in base64, at each of the three places where it can begin.
_ENCODED_KEY = re.compile(
    r"[A-Za-z0-9+/_-]*(?:"
    + "|".join(re.escape(_core(b"skysql.", offset)) for offset in range(3))
    + r")[A-Za-z0-9+/_-]{40,}={0,2}"
)
