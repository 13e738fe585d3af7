"""One endpoint as record batches, without a lake."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import anyio.abc
import pyarrow as pa

from extractor.clock import SystemClock
from extractor.config import Config, with_run
from extractor.errors import ExtractError
from extractor.events import Observer, ignore
from extractor.lane import Budget, Part, ThreadExecutor
from extractor.ledger import Outcome
from extractor.plan import TablePlan
from extractor.reader import Interruption, NoSink, Reader, World, gravest, outcome_of, read_all, set_up
from extractor.schema import TableSchema, plan_schema

__all__ = ("stream",)


class _StreamSink:
    """Hands batches to whoever iterates; its send waits, so that back-pressure reaches the socket."""

    buffered_bytes = 0
    is_full = False

    def __init__(self, send: Callable[[pa.RecordBatch], Awaitable[None]]) -> None:
        self._send = send

    async def take(self, parts: Sequence[Part]) -> None:
        for part in parts:
            await self._send(part.batch)

    async def write(self) -> None:
        return

    async def flush(self) -> None:
        return


async def stream(
    name: str,
    config: Config,
    *,
    key_file: str = "",
    observer: Observer = ignore,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[pa.RecordBatch]:
    """The record batches of one endpoint of the first account, as they arrive; no lake is involved.

    Batches have the table's columns and `_rescued_data`. Rows of repeated pages are not removed. The iteration
    ends normally only if the endpoint is complete.

    Raises:
        ConfigError, AuthError, SourceUnreachable: as `extract`.
        ExtractError: the endpoint is not complete, and why.
    """
    chosen = with_run(config, include=(name,), exclude=(), tags=())
    world = World(
        clock=SystemClock(),
        chance=random.random,
        environment=os.environ if environment is None else environment,
        executor=ThreadExecutor(),
    )
    setup = set_up(chosen, key_file, world, ())
    budget = Budget(int(config.limits.memory_mb * (1 << 20)))
    send, receive = anyio.create_memory_object_stream[pa.RecordBatch](1)
    account, key = setup.accounts[0]
    with tempfile.TemporaryDirectory(prefix="skysql-extract-") as folder:
        reader = Reader(
            chosen,
            setup.plan,
            account,
            key,
            world=world,
            observer=world.secrets.observer(observer),
            budget=budget,
            priors={},
            schemas={t.name: _schema(t, chosen) for t in setup.plan.active},
            sink_of=lambda table: _StreamSink(send.send) if table.name == name else NoSink(),
            spool_folder=lambda: Path(folder),
            learnt_rate=None,
            is_prompt=True,
        )

        async def read() -> None:
            async with send, AsyncExitStack() as stack:
                await reader.connect(stack)
                await read_all([reader], budget, world.clock, Interruption())

        # A task of its own, not a task group: a generator may be left at any yield, from any task.
        reading = asyncio.ensure_future(read())
        try:
            async for batch in receive:
                yield batch
            await reading
        except BaseExceptionGroup as group:
            world.secrets.clean(group)
            raise gravest(group) from group
        finally:
            reading.cancel()
            receive.close()
            with suppress(BaseException):
                await reading
    outcomes: dict[str, Outcome] = {}
    for planned in setup.plan.active:
        outcomes[planned.name] = outcome_of(planned, reader.tables[planned.name], outcomes, None)
    if outcomes[name].status not in ("complete", "absent"):
        raise ExtractError(world.secrets.text(f"{name}: {outcomes[name].status}: {outcomes[name].reason}"))


def _schema(table: TablePlan, config: Config) -> TableSchema:
    run = config.run
    return plan_schema(
        table.endpoint,
        policy=run.schema,
        pii=run.pii,
        secrets_allowed=table.name in run.secret,
        customer_data_allowed="customer_data" in run.allow,
    )
