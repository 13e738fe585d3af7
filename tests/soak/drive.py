"""Children that are killed, and what readers of their lake may see after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import extractor
from extractor.lake import Lake
from extractor.stores import open_store
from tests.soak.child import Specification

__all__ = ("KEY", "Answered", "Driver", "seen_by_glob", "settings")

KEY = "skysql.1zzz.ab12cd34." + "Q7" * 18 + ".0a1b2c3d"
TOP = Path(__file__).parents[2]


def settings(url: str, lake: Path, *tables: str, **more: object) -> dict[str, Any]:
    """A configuration that reads those tables of a sandbox; `more` has `__` for the point in a name."""
    return {
        "source.base_url": url,
        "source.token_url": f"{url}/api/v1/token/",
        "source.keyinfo_url": f"{url}/api/v1/keyinfo/",
        "lake.uri": str(lake),
        "run.include": tables or ("*",),
        "run.allow": ("customer_data",),
        "limits.requests_per_second": 1000.0,
        "limits.retry_attempts": 20,
        "limits.idle_seconds": 2.0,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer that a child got."""

    at: float
    run_id: str
    request: tuple[str, str, str]


@dataclass(slots=True)
class Driver:
    """Runs of one configuration, one after the other, in a folder of their own."""

    folder: Path
    overrides: Mapping[str, Any]
    segment_bytes: int = 0
    is_apart: bool = False
    """The signals of the terminal do not come to the runs."""
    kills: list[float] = field(default_factory=list)

    def start(self, *, dies_at: int = 0) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        specification = Specification(
            overrides=dict(self.overrides),
            key=KEY,
            answers=str(self.folder / "answers"),
            segment_bytes=self.segment_bytes,
            dies_at=dies_at,
        )
        path = self.folder / "specification.json"
        path.write_bytes(msgspec.json.encode(specification))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SKYSQL_")}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.soak.child", str(path)],
            cwd=TOP,
            env={**kept, "PYTHONPATH": f"{Path(extractor.__file__).parents[1]}{os.pathsep}{TOP}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=self.is_apart,
        )

    def run(self, **given: Any) -> tuple[int, str]:
        """Exit code (-9 after a kill) and what was complained of."""
        with self.start(**given) as child:
            _, complaint = child.communicate(timeout=110)
        return child.returncode, complaint.decode()

    @property
    def steps(self) -> int:
        """How many steps the last run took that ended by itself, from the first settled table on."""
        return int((self.folder / "steps").read_text())

    @property
    def answers(self) -> list[Answered]:
        path = self.folder / "answers"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("]")]
        return [
            Answered(at, run_id, (method, place, json.dumps(query)))
            for at, run_id, method, place, query in found
        ]

    def again(self, slack_seconds: float = 10.0) -> list[Answered]:
        """The answers that had come to an earlier process of the same run, and not shortly before its end."""
        last: dict[tuple[str, tuple[str, str, str]], float] = {}
        found: list[Answered] = []
        for answer in self.answers:
            key = (answer.run_id, answer.request)
            came = last.get(key)
            # The kill that ended the process to which it came: only what it had saved by then counts.
            ended = next((kill for kill in self.kills if came is not None and kill > came), None)
            if came is not None and ended is not None and came + slack_seconds < ended < answer.at:
                found.append(answer)
            last[key] = answer.at
        return found


def seen_by_glob(lake: Path) -> Iterator[str]:
    """What is wrong with the files that a reader by glob sees: each must be committed, whole, and in its place."""
    opened = Lake(open_store(str(lake)))
    committed: dict[str, int] = {}
    folders: dict[str, set[str]] = {}
    for entry in opened.log.entries():
        for state in opened.log.tables(entry):
            for file in state.files:
                committed[file.path] = file.size_bytes
                folders.setdefault(file.path.rpartition("/")[0], set()).add(file.path)
    present = {
        path.relative_to(lake).as_posix(): path.stat().st_size
        for path in lake.rglob("*.parquet")
        if "_extractor" not in path.relative_to(lake).parts
    }
    for path, size in present.items():
        if committed.get(path) != size:
            yield f"{path} is not committed"
        folder = path.rpartition("/")[0]
        if "/run=" in f"/{folder}" and not folders.get(folder, set()) <= present.keys():
            yield f"{folder} is not whole"
