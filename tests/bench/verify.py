"""What the Parquet files below a folder hold: rows, different ids, the sum of one column; as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ("add_up",)


def add_up(folder: Path, pattern: str, checked: str, key: str = "id") -> dict[str, int]:
    """Different values of `key` are counted over all files; 0 if there is none."""
    files = sorted(folder.glob(pattern))
    columns = [key, checked] if key else [checked]
    tables = [pq.ParquetFile(file).read(columns=columns) for file in files]
    rows = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({checked: []})
    return {
        "rows": rows.num_rows,
        "distinct": pc.count_distinct(rows[key]).as_py() if key and tables else 0,
        "checked": int(pc.sum(rows[checked]).as_py() or 0),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }


if __name__ == "__main__":
    print(json.dumps(add_up(Path(sys.argv[1]), *sys.argv[2:])))
