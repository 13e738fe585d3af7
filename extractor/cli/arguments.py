"""The flags that every verb knows, declared once, and the configuration that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extractor.cli.output import PROGRAM, Output

if TYPE_CHECKING:
    from extractor.config import Config

__all__ = ("SWITCHES", "VALUED", "Arguments", "Verb", "known_secrets", "verb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The global flags of one call, and its output."""

    output: Output
    config: Path | None = None
    settings: tuple[str, ...] = ()
    lake: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    is_json: bool = False
    is_quiet: bool = False
    verbosity: int = 0
    key_file: str = ""

    @property
    def overrides(self) -> dict[str, object]:
        """The flags that stand for a key of the configuration."""
        given = {
            "lake.uri": self.lake,
            "run.include": self.include,
            "run.exclude": self.exclude,
            "run.tags": self.tags,
        }
        return {key: value for key, value in given.items() if value}

    def load(
        self,
        *,
        overrides: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Config:
        """The configuration in force; its keys' values are from now on kept out of all output.

        Raises:
            ConfigError: one line with file, key and the nearest valid name.
        """
        from extractor.config import load_config

        config = load_config(
            self.config,
            settings=self.settings,
            overrides={**self.overrides, **(overrides or {})},
            environment=environment,
            directory=directory,
        )
        files = [config.source.key_file, *(account.key_file for account in config.accounts)]
        variables = [account.key_env for account in config.accounts]
        self.output.conceal(known_secrets(files=files, variables=variables))
        return config


def known_secrets(*, files: list[str], variables: list[str]) -> set[str]:
    """The texts of those key files and environment variables that are there.

    Pipes are passed over: whoever reads them first takes the key away from the run.
    """
    secrets = {os.environ.get(variable, "").strip() for variable in variables}
    for file in files:
        path = Path(file).expanduser()
        try:
            if file and path.is_file() and path.stat().st_size < 65536:
                secrets.add(path.read_text().strip())
        except (OSError, ValueError):
            continue  # the run itself will say what is wrong with it
    return secrets - {""}


# --- flags --------------------------------------------------------------------------------------------------

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _flag(*names: str, **attributes: Any) -> _Decorator:
    return click.option(*names, **attributes)


_EVERYWHERE: tuple[_Decorator, ...] = (
    _flag("--config", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file."),
    _flag("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="One setting; repeatable."),
    _flag("--lake", metavar="URI", help="Where the data are."),
    _flag("--json", "is_json", is_flag=True, help="Machine output on stdout, nothing else there."),
    _flag("--quiet", "is_quiet", is_flag=True, help="No progress and no log; failures only."),
    _flag("-v", "--verbose", "verbosity", count=True, help="Log more; -vv every request."),
)
_SELECTION: tuple[_Decorator, ...] = (
    _flag("--include", multiple=True, metavar="GLOB", help="Only these endpoints; repeatable."),
    _flag("--exclude", multiple=True, metavar="GLOB", help="Not these endpoints; repeatable."),
    _flag("--tag", "tags", multiple=True, metavar="TAG", help="Only endpoints with this tag; repeatable."),
)
_KEY: tuple[_Decorator, ...] = (
    _flag("--api-key-file", "key_file", default="", metavar="FILE", help="File that holds the API key."),
)

VALUED = frozenset({"--config", "--set", "--lake", "--include", "--exclude", "--tag", "--api-key-file"})
SWITCHES = frozenset({"--json", "--quiet", "--verbose", "-v", "-vv", "-vvv"})


class Verb(click.Command):
    """A command whose help ends in an example."""

    example: str = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"  {line}\n")


def verb(
    name: str,
    *,
    example: str,
    selects: bool = False,
    needs_key: bool = False,
    context: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., int]], Verb]:
    """Make a command of a function of `Arguments` and the verb's own flags; it returns the exit code.

    `selects` adds the flags that choose endpoints, `needs_key` the one for the API key.
    """
    flags = _EVERYWHERE + (_SELECTION if selects else ()) + (_KEY if needs_key else ())

    def decorate(function: Callable[..., int]) -> Verb:
        def callback(**given: Any) -> int:
            output = click.get_current_context().find_object(Output) or Output()
            shared = {key: given.pop(key) for key in list(given) if key in Arguments.__dataclass_fields__}
            arguments = Arguments(output=output, **shared)
            _prepare(arguments)
            return function(arguments, **given)

        wrapped: Callable[..., Any] = update_wrapper(callback, function)
        for flag in reversed(flags):
            wrapped = flag(wrapped)
        settings = {"help_option_names": ["-h", "--help"], **(context or {})}
        command = click.command(name, cls=Verb, context_settings=settings)(wrapped)
        command.example = example
        return command

    return decorate


def _prepare(arguments: Arguments) -> None:
    output = arguments.output
    output.is_json = arguments.is_json
    if arguments.lake is not None and not arguments.lake.strip():
        raise click.UsageError(f"--lake is empty; name a folder, as in {PROGRAM} run --lake lake")
    if arguments.key_file:
        output.conceal(known_secrets(files=[arguments.key_file], variables=[]))
    output.is_debug = output.is_debug or arguments.verbosity > 1
