"""`check`: is the key good, what may it read, is the lake writable; one line per finding, with its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extractor.cli.arguments import Arguments, verb
from extractor.cli.failure import first_code

if TYPE_CHECKING:
    from extractor.preflight import Finding

__all__ = ("check",)


@verb("check", selects=True, needs_key=True, example="skysql-extract check --api-key-file ~/.skysql-key")
def check(arguments: Arguments) -> int:
    """Look at key, source and lake before a run.

    One line for each finding, with its remedy.
    """
    config = arguments.load()
    from extractor.cli.extraction import run_async
    from extractor.preflight import preflight

    findings = run_async(preflight(config, key_file=arguments.key_file))
    code = first_code(finding.exit_code for finding in findings)
    if arguments.is_json:
        arguments.output.write_json(
            {
                "status": "failed" if code else "ok",
                "exit_code": code,
                "findings": [
                    {
                        "name": finding.name,
                        "is_good": finding.is_good,
                        "text": finding.text,
                        "remedy": finding.remedy,
                        "exit_code": finding.exit_code,
                    }
                    for finding in findings
                ],
            }
        )
    elif not arguments.is_quiet:
        arguments.output.write("\n".join(_line(finding) for finding in findings))
    if code:
        first = next(finding for finding in findings if finding.exit_code == code)
        arguments.output.complain(_with_remedy(first))
    return code


def _line(finding: Finding) -> str:
    match finding.is_good:
        case True:
            word = "ok"
        case None:
            word = "warn"
        case _:
            word = "FAIL"
    return f"{word:<4}  {_with_remedy(finding)}"


def _with_remedy(finding: Finding) -> str:
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{finding.name}: {finding.text}{remedy}"
