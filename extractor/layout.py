"""How rows lie in a file: which encoding each column gets, and for compacted tables in which order rows stand.

Only encodings that DuckDB, polars, pyarrow and Spark all read are used: dictionary, DELTA_BINARY_PACKED and PLAIN.
BYTE_STREAM_SPLIT would take a fifth off columns of floats, but Spark 3.5 refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from extractor.batch import ROWS_MAX
from extractor.endpoint import Endpoint

__all__ = ("GROUP_BYTES", "GROUP_ROWS", "dictionary_columns", "sort_columns", "sort_rows", "writer_options")

GROUP_ROWS = 8 * ROWS_MAX
"""Rows of a row group of a compacted file at most: what repeats from series to series must be near itself."""
GROUP_BYTES = 256 << 20
"""Bytes of decoded rows in such a row group, about."""

_LEVEL = 3
_SAMPLES = 16
_SAMPLE_ROWS = 1024
_SAMPLE_ROWS_LEAST = 128
_SAMPLE_ROWS_COMPACTED = 8192
_NARROW_BYTES = (1 << 31) - 1
_SERIES = "_series"
# What readers ask for. The hash alone would scatter the series of one metric over the file.
_NAMING = ("name", "namespace", "service_name", "server_name")
# Older versions of pyarrow have no such bound.
_HAS_PAGE_ROWS = "max_rows_per_page" in signature(pq.ParquetWriter).parameters


def writer_options(table: pa.Table, *, compression: str, is_compacted: bool = False) -> Mapping[str, object]:
    """What to give `ParquetWriter` for a file that begins with these rows; `compression` as `parquet.compression`.

    A column whose values repeat in a sample of the rows is written with a dictionary, other integers and times
    as differences, all else plain. Of a compacted file all row groups should be those of `sort_rows`.
    """
    dictionary: list[str] = []
    encodings: dict[str, str] = {}
    # The fewer rows a file begins with, the less there is to gain.
    wanted = min(_SAMPLE_ROWS, max(_SAMPLE_ROWS_LEAST, table.num_rows // 8))
    sample = _sample(table, _SAMPLE_ROWS_COMPACTED if is_compacted else wanted)
    for name in table.schema.names:
        for path, values in _leaves(name, sample[name].combine_chunks()):
            if pa.types.is_boolean(values.type):
                continue
            if not pa.types.is_floating(values.type) and _is_repetitive(values):
                dictionary.append(path)
            else:
                encodings[path] = "DELTA_BINARY_PACKED" if _is_whole(values.type) else "PLAIN"
    options: dict[str, object] = {
        "compression": compression,
        "use_dictionary": dictionary,
        "column_encoding": encodings,
        "write_page_index": True,
    }
    if is_compacted and compression == "zstd":
        options["compression_level"] = _LEVEL
    if is_compacted and _HAS_PAGE_ROWS:
        # Pages are compressed one by one: in short ones the run of each minute is told anew for few series.
        options["max_rows_per_page"] = GROUP_ROWS
    return options


def sort_columns(endpoint: Endpoint, names: Sequence[str]) -> tuple[str, ...]:
    """The columns by which the rows of a table are ordered: those of its series, then the time.

    The series is the key without the time. A key of one column names rows, not series: there time comes first.
    Of a column whose type was corrected all versions count. Metrics stand by name and server, then by `_series`.
    """

    def versions(column: str) -> list[str]:
        return [name for name in names if column and (name == column or name.startswith(f"{column}__v"))]

    times = versions(endpoint.sync.cursor)
    key = ((*_NAMING, *endpoint.key) if _SERIES in endpoint.key else endpoint.key) if endpoint.key else ()
    series = [name for column in key for name in versions(column) if name not in times]
    is_row_name = len(endpoint.key) == 1
    return tuple(dict.fromkeys([*times, *series] if is_row_name else [*series, *times]))


def sort_rows(
    table: pa.Table, endpoint: Endpoint, *, group_rows: int = GROUP_ROWS, group_bytes: int = GROUP_BYTES
) -> Iterator[pa.Table]:
    """The rows in the order of `sort_columns`, a row group at a time; nulls last, equal rows as they came.

    Columns may come as dictionaries (see `dictionary_columns`) and leave plain. Besides the table, this holds a
    copy of its columns, which are dictionaries where text repeats, some 40 bytes for each row, and one row group:
    a day of metrics, read with dictionaries, took 217 bytes for each row at its peak. For less, sort the files of
    fewer runs at a time. Sorted files are merged by sorting all their rows: nothing here is cheaper than that.

    Raises:
        pa.ArrowInvalid: a column of lists or maps holds over 2 GiB, or over 2³¹ items.
    """
    order = _order(table, endpoint)
    sample = _sample(table, _SAMPLE_ROWS_COMPACTED)
    columns = [_gatherable(table[name], sample[name]) for name in table.schema.names]
    schema = pa.schema([field.with_type(_plain(field.type)) for field in table.schema], table.schema.metadata)
    step = max(1, min(group_rows, table.num_rows * group_bytes // max(1, table.nbytes)))
    del table  # its copy is enough from here on, if the caller has let go of it
    for start in range(0, len(order), step):
        rows = order.slice(start, step)
        yield pa.Table.from_arrays(
            [column.take(rows).cast(type_) for column, type_ in zip(columns, schema.types, strict=True)],
            schema=schema,
        )


def dictionary_columns(metadata: pq.FileMetaData) -> tuple[str, ...]:
    """The columns of text that a file holds as dictionaries: read as such, they take less than half the memory.

    Files that are read together must be asked for the same columns, whatever they hold.
    """
    if not metadata.num_row_groups:
        return ()
    group = metadata.row_group(0)
    chunks = (group.column(number) for number in range(metadata.num_columns))
    return tuple(
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY"
        and chunk.has_dictionary_page
        and "." not in chunk.path_in_schema
    )


def _leaves(path: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """The columns that Parquet makes of one of Arrow, by their path in the file, with values."""
    if pa.types.is_struct(values.type):
        for number, field in enumerate(values.type):
            yield from _leaves(f"{path}.{field.name}", values.field(number))
    elif pa.types.is_map(values.type):
        yield from _leaves(f"{path}.key_value.key", values.keys)
        yield from _leaves(f"{path}.key_value.value", values.items)
    elif pa.types.is_list(values.type):
        yield from _leaves(f"{path}.list.element", values.flatten())
    else:
        yield path, values


def _sample(table: pa.Table, rows: int) -> pa.Table:
    """Some rows from all over the table: the first ones of a sorted table say little about the rest."""
    if table.num_rows > rows:
        step, size = table.num_rows // _SAMPLES, rows // _SAMPLES
        table = pa.concat_tables([table.slice(number * step, size) for number in range(_SAMPLES)])
    return table


def _is_repetitive(values: pa.Array | pa.ChunkedArray) -> bool:
    """True where each value stands there twice or more often on average."""
    distinct, present = pc.count_distinct(values).as_py(), len(values) - values.null_count
    return bool(2 * distinct <= present)


def _is_whole(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_temporal(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_binary(type_))


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _order(table: pa.Table, endpoint: Endpoint) -> pa.Array:
    names = [
        name
        for name in sort_columns(endpoint, table.schema.names)
        if not pa.types.is_nested(table.schema.field(name).type)
    ]
    if not names:
        return pc.sort_indices(pa.nulls(table.num_rows, pa.int8()))
    ranks = pa.table({name: _ranks(table[name]) for name in names})
    return pc.sort_indices(ranks, sort_keys=[(name, "ascending") for name in names])


def _ranks(column: pa.ChunkedArray) -> pa.Array:
    """Numbers in the order of the values: text is compared once for each distinct value."""
    if not _is_text(_plain(column.type)):
        return column.combine_chunks()
    is_encoded = pa.types.is_dictionary(column.type)
    encoded = (column if is_encoded else column.dictionary_encode()).combine_chunks()
    return pc.rank(encoded.dictionary, tiebreaker="dense").cast(pa.int32()).take(encoded.indices)


def _gatherable(column: pa.ChunkedArray, sample: pa.ChunkedArray) -> pa.Array:
    """The column as one array from which rows are taken fast: repeated text as a dictionary, any other with wide
    offsets, as there may be more than 2 GiB of it.
    """
    if _is_text(column.type):
        if column.nbytes < _NARROW_BYTES and _is_repetitive(sample):
            column = column.dictionary_encode()
        else:
            column = column.cast(pa.large_string() if pa.types.is_string(column.type) else pa.large_binary())
    return column.combine_chunks()
