"""What imports what, and what a start must not pay for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import extractor

TOP = Path(__file__).parents[2]

# Hundreds of milliseconds each: for a run, not for `--help`.
HEAVY = {"aiohttp", "pyarrow", "duckdb", "polars"}

STARTS = {
    "import extractor": "import extractor",
    "skysql-extract --help": "from extractor.cli import main; sys.argv[1:] = ['--help']; main()",
    "skysql-extract": "from extractor.cli import main; main()",
}


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    assert extractor.__file__ is not None
    # The package that this test imported, whether installed or not.
    environment = os.environ | {"PYTHONPATH": str(Path(extractor.__file__).parents[1])}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("start", STARTS)
def test_a_start_imports_nothing_heavy(start: str, tmp_path: Path) -> None:
    code = f"""
import sys
try:
    {STARTS[start]}
except SystemExit as stop:
    assert stop.code in (None, 0), stop.code
print("loaded:", *sorted(sys.modules), file=sys.stderr)
"""

    done = _run(sys.executable, "-c", code, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.rpartition("loaded:")[2].split())
    assert "extractor" in loaded
    assert loaded & HEAVY == set()


def test_each_module_imports_only_what_stands_before_it() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed: pip install '.[dev]'")

    done = _run(sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", cwd=TOP)

    assert done.returncode == 0, done.stdout + done.stderr
