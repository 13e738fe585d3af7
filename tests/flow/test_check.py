from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SELECTED = ("--include", "users", "--include", "services")


@pytest.mark.parametrize(
    ("knobs", "code", "told"),
    [
        (("--deny", "*"), 4, "answers 403; give the key's user a role"),
        (("--deny", "*users*"), 3, "/organization/v1/users answers 403"),
        (("--key", "skysql.another"), 4, "the key is refused everywhere"),
        (("--fault", "500=1"), 3, "answers 500; try again later"),
        (("--fault", "reset=1"), 10, "the connection was reset; check source.base_url"),
        ((), 0, ""),
    ],
)
def test_a_check_ends_with_the_code_of_a_run(
    knobs: tuple[str, ...], code: int, told: str, serve: Callable[..., Any], program: Any
) -> None:
    site = serve(*knobs)
    settings = ("--set", f"source.base_url={site.url}", "--set", "limits.retry_attempts=1", *SELECTED)

    run = program.call([*program.command, "run", "--lake", "lake", *settings], {})
    check = program.call([*program.command, "check", "--lake", "lake", *settings], {})

    assert (check.code, run.code) == (code, code)
    assert told in check.complaint
    assert bool(check.complaint) == bool(code)
