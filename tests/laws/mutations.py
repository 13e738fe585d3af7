"""Planted bugs: each is applied to a copy of the package, and the laws must find it within 200 seeds.

`python -m tests.laws.mutations [NAME …]` prints a table, and fails if one is not found or no longer applies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.laws.simulation.play import play_all

__all__ = ("MUTATIONS", "Mutation", "apply", "hunt")

TOP = Path(__file__).parents[2]
SEEDS = 200


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug as edits of the package: file, the text that stands there once, and what takes its place."""

    name: str
    edits: tuple[tuple[str, str, str], ...]


def _one(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, ((file, old, new),))


MUTATIONS = (
    # paging
    _one(
        "the last page of a chain is dropped",
        "paging.py",
        "        if not token:\n",
        "        if not token or self.pages == 3:\n",
    ),
    _one("an offset goes one row too far", "paging.py", "str(offset + rows)", "str(offset + rows + 1)"),
    _one(
        "numbered pages end one too soon",
        "paging.py",
        "number - paging.first_page + 1 >= pages",
        "number - paging.first_page + 2 >= pages",
    ),
    _one(
        "any link is taken for the next one",
        "paging.py",
        'if name.strip().lower() == "rel" and',
        "if True or",
    ),
    _one("a slash in a parent's value is not escaped", "plan.py", 'quote(value, safe="")', "quote(value)"),
    # retries
    Mutation(
        "a retry is put back twice",
        (
            (
                "account.py",
                "                self.frontier.put_back(request, not_before=not_before)\n",
                (
                    "                self.frontier.put_back(request, not_before=not_before)\n"
                    "                self.frontier.wait(request, not_before=not_before)\n"
                ),
            ),
        ),
    ),
    _one("the first failure is the last", "retry.py", "if attempt >= attempts:", "if attempt >= 1:"),
    _one("attempts are not counted", "retry.py", "if attempt >= attempts:", "if attempt >= 50:"),
    _one(
        "a garbled answer is not asked for again",
        "retry.py",
        "MalformedBody: Verdict.TRANSIENT",
        "MalformedBody: Verdict.FATAL",
    ),
    _one("a refused table counts as absent", "retry.py", "403: Verdict.DENIED", "403: Verdict.ABSENT"),
    # limits
    _one(
        "the schedule of the rate is twice as fast",
        "limit.py",
        "max(self._slot + interval,",
        "max(self._slot + interval / 2,",
    ),
    _one(
        "one request too many is in flight",
        "limit.py",
        "if self._in_flight >= self._limits.concurrency",
        "if self._in_flight > self._limits.concurrency",
    ),
    _one(
        "a pause that the server names is not kept",
        "limit.py",
        "return min(max(seconds, SHORTEST_PAUSE_SECONDS), self._limits.longest_pause_seconds)",
        "return SHORTEST_PAUSE_SECONDS",
    ),
    # wake-ups
    _one(
        "a free slot wakes nobody",
        "limit.py",
        "            self._changed.set()\n            self._changed = None\n",
        "            self._changed = None\n",
    ),
    _one(
        "freed memory wakes nobody",
        "lane.py",
        "            self._freed.set()\n",
        "",
    ),
    _one(
        "a change of the frontier wakes nobody",
        "schedule.py",
        "            self._changed.set()\n",
        "",
    ),
    _one(
        "a task goes on with a request that was not granted",
        "schedule.py",
        "if frontier.ready_at(sent_at) != sent_at or not slots.try_acquire(sent_at):",
        "if frontier.ready_at(sent_at) != sent_at:",
    ),
    _one(
        "a task goes on although memory is full",
        "reader.py",
        "not self._budget.is_full and self._limiter.try_acquire(now)",
        "self._limiter.try_acquire(now)",
    ),
    # tokens
    _one(
        "a token is used beyond its end",
        "auth.py",
        "self._refresh_at = self._token.expires_at - margin",
        "self._refresh_at = self._token.expires_at + 3",
    ),
    Mutation(
        "each caller refreshes for itself",
        (
            ("auth.py", "        async with self._turn:\n", "        if True:\n"),
            ("account.py", "        while not tokens.is_fresh:\n", "        while False:\n"),
        ),
    ),
    _one(
        "a grant counts from before the wait for a token",
        "account.py",
        "            sent_at = await self.limiter.renew(sent_at)\n",
        "",
    ),
    _one(
        "pages wait although nothing is on the wire",
        "account.py",
        "            if not self.frontier.has_ready:\n                self.hurry()\n",
        "            pass\n",
    ),
    _one(
        "a refused token stays in use",
        "account.py",
        "            self._credential.tokens.invalidate(token.generation)\n",
        "",
    ),
    # rows
    _one(
        "children only of the first page of a parent",
        "account.py",
        "        if batch is not None:\n            self._add_children",
        "        if batch is not None and page.request.page == 0:\n            self._add_children",
    ),
    _one("pages decoded together begin at one place", "lane.py", "            offset += length\n", ""),
    _one(
        "rows are forgotten when the columns change",
        "write.py",
        "                self._close_group(key)\n            before = buffer.size_bytes\n",
        "                buffer.take()\n            before = buffer.size_bytes\n",
    ),
    _one(
        "a file that is full is not counted",
        "write.py",
        "        if opened.size_bytes >= self._settings.target_file_bytes:\n            self._close(key)",
        "        if opened.size_bytes >= self._settings.target_file_bytes:\n"
        "            self._open.pop(key).close()",
    ),
    _one(
        "rows that came twice stay", "unique.py", "        if doubled.num_rows == 0:\n", "        if True:\n"
    ),
    _one(
        "rows that the lake has are appended again",
        "settle.py",
        "    if not reading.endpoint.sync.is_event or reading.prior is None:\n",
        "    if True:\n",
    ),
    _one("a changed snapshot counts as unchanged", "settle.py", "return new == old, new", "return True, new"),
    # proof
    _one(
        "a chain without an end counts as complete",
        "ledger.py",
        "return not self.failure and self.chain.is_ended and self.undecoded == 0",
        "return not self.failure and self.undecoded == 0",
    ),
    _one(
        "a chain that failed counts as ended",
        "ledger.py",
        "        chain.failure = reason\n        self.failure_count += 1\n",
        "        chain.chain.proof = reason\n",
    ),
    _one(
        "children do not ask how their parent fared",
        "ledger.py",
        'if parent is not None and parent.status != "complete":',
        "if False:",
    ),
    _one(
        "a total that the server names is not compared",
        "settle.py",
        "total is not None and came < total",
        "total is not None and came < 0",
    ),
    # memory
    _one(
        "pages are admitted whatever is held",
        "lane.py",
        "            self._freed = self._freed or anyio.Event()\n            await self._freed.wait()\n",
        "            return\n",
    ),
    _one(
        "a body is never given back",
        "lane.py",
        "                self._budget.free_body(page.size_bytes)\n",
        "",
    ),
    # the journal
    _one(
        "a run that is taken up begins again at its first pages",
        "resume.py",
        "            if not self._reader.run.replay(answer, rows, is_again=fate.is_again):\n",
        "            if True:\n",
    ),
    _one(
        "rows of a chain that goes on stay in the journal",
        "account.py",
        "            page = msgspec.structs.replace(page, places=resumed.places)\n",
        "",
    ),
    _one(
        "children of rows in the journal are forgotten",
        "account.py",
        "            self._add_children(table, rows, request.window)\n",
        "            pass\n",
    ),
    _one("the journal is saved too late", "journal.py", "_BETWEEN_SECONDS = 4.0", "_BETWEEN_SECONDS = 400.0"),
    # the commit
    Mutation(
        "the entry is put before the lists that it refers to",
        (
            (
                "commitlog.py",
                "        self.folds = Folds(store)\n",
                "        self.folds = Folds(store)\n        self._later: list[tuple[str, bytes]] = []\n",
            ),
            (
                "commitlog.py",
                "        if not self._store.put_if_absent(list_path(digest), content):\n",
                (
                    "        self._later.append((digest, content))\n        return digest\n"
                    "        if not self._store.put_if_absent(list_path(digest), content):\n"
                ),
            ),
            (
                "commit.py",
                "        if _put_entry(store, entry.sequence, content):\n",
                (
                    "        if _put_entry(store, entry.sequence, content):\n"
                    "            for digest, held in log._later:\n"
                    "                store.put(list_path(digest), held)\n"
                ),
            ),
        ),
    ),
    _one(
        "staging is removed before it is published",
        "commit.py",
        "    moved = 0\n    if entry.replaced and",
        '    moved = 0\n    store.delete_folder(f"{STAGING}/{entry.run_id}")\n    if entry.replaced and',
    ),
    _one(
        "what a cut-off run committed is not published",
        "pipeline.py",
        "for run_id in roll_forward(self._store, self._log, leases):",
        "for run_id in list[str]():",
    ),
    _one(
        "a run that may have committed removes its files",
        "pipeline.py",
        "if not self._may_be_committed and not is_wanted:",
        "if True:",
    ),
    _one("a dead run keeps its lease", "lease.py", "if age_seconds > self._stale_seconds:", "if False:"),
    _one(
        "what was written is not synced",
        "stores/memory.py",
        "        self._step()\n        self._synced[path] = self._visible[path]\n",
        "        self._step()\n",
    ),
    _one(
        "the lake is left locked by an error",
        "pipeline.py",
        "            leases.release()\n            if is_new_lake",
        "            if is_new_lake",
    ),
    _one(
        "a lease is never given back",
        "lease.py",
        '        """Hold nothing; what another run has taken over stays with it."""\n',
        "        return\n",
    ),
)


def apply(mutation: Mutation, package: Path) -> None:
    """Plant the bug in that copy. Raises: ValueError if the program no longer has the text that it changes."""
    for file, old, new in mutation.edits:
        path = package / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{mutation.name}: stands {text.count(old)} times in {file}: {old!r}")
        path.write_text(text.replace(old, new))


def hunt(mutation: Mutation, *, seeds: int = SEEDS, broken_already: str = "") -> str:
    """The line about the first seed that breaks a law in a copy with the bug, empty if none does.

    `broken_already` are the seeds, with commas, that break one without it.
    """
    with tempfile.TemporaryDirectory(prefix="laws-") as folder:
        top = Path(folder)
        bare = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TOP / "extractor", top / "extractor", ignore=bare)
        shutil.copytree(TOP / "tests" / "laws", top / "tests" / "laws", ignore=bare)
        apply(mutation, top / "extractor")
        command = [
            sys.executable,
            "-m",
            "tests.laws",
            "--seeds",
            f"0-{seeds}",
            "--workers",
            "0",
            "--stop",
            "1",
        ]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(command, cwd=top, env=environment, capture_output=True, text=True, check=False)
        found = re.search(r"^seed .*$", run.stdout, re.MULTILINE)
        if found is None and run.returncode:
            raise RuntimeError(f"{mutation.name}: {run.stderr[-2000:]}")
        return found[0] if found is not None else ""


def main(names: list[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not names or any(name in mutation.name for name in names)]
    begun = time.perf_counter()
    broken = ",".join(str(played.seed) for played in play_all(range(SEEDS)) if played.broken)
    print(f"broken without a planted bug: {broken or 'none'}")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(partial(_told, broken), chosen))
    missed = [mutation for mutation, line in zip(chosen, found, strict=True) if not line.startswith("seed ")]
    seconds = time.perf_counter() - begun
    print(f"{len(chosen)} planted bugs, {len(missed)} not found, {seconds:.0f} s")
    return 1 if missed else 0


def _told(broken_already: str, mutation: Mutation) -> str:
    try:
        line = hunt(mutation, broken_already=broken_already)
    except (RuntimeError, ValueError) as error:
        line = f"ERROR {error}"
    print(f"{mutation.name:55} {line[:110] or 'NOT FOUND'}", flush=True)
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
