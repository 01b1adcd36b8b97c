"""Parquet files row by row, in batches of about 8 MB, whatever the size of the file and its row groups."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mini_chat.data.tally import DAMAGED, Tally
from mini_chat.errors import UserError

BATCH_BYTES = 8 << 20
BUFFER_BYTES = 1 << 20
MAX_BATCH_ROWS = 1024


def read_column(path: Path, column: str, tally: Tally) -> Iterator[bytes | None]:
    """The values of a text column as UTF-8 bytes (not yet checked), None where there is none.

    Raises:
        UserError: pyarrow is not installed, the file is no parquet, the column is missing or not text.
    """
    import_pyarrow(path)
    import pyarrow as pa

    schema = open_parquet(path).schema_arrow
    if column not in schema.names:
        near = get_close_matches(column, schema.names, 1) or schema.names[:1]
        hint = f"; set field to one of {', '.join(schema.names)}" + (f", such as {near[0]}" if near else "")
        raise UserError(f"{path}: no column '{column}'{hint}")
    kind = schema.field(column).type
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_string_view(text)):
        raise UserError(f"{path}: column '{column}' holds {kind}, not text; set field to a text column")
    for batch in _batches(path, [column], tally):
        # As bytes, so that what is not UTF-8 is judged (and counted) value by value, as in every other format.
        yield from batch.column(0).cast(text).cast(pa.large_binary()).to_pylist()


def read_rows(path: Path, tally: Tally) -> Iterator[dict[str, Any] | None]:
    """The rows as mappings from column to value; None for a row whose text is not UTF-8.

    Raises:
        UserError: pyarrow is not installed, the file is no parquet.
    """
    for batch in _batches(path, None, tally):
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def import_pyarrow(path: Path) -> None:
    """Make sure that pyarrow is there.

    Raises:
        UserError: it is not.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path}: reading .parquet needs pyarrow; pip install 'mini-chat[corpus]'") from error


def open_parquet(path: Path) -> Any:
    """The `pyarrow.parquet.ParquetFile`, read through a small buffer and not row group by row group.

    Raises:
        UserError: pyarrow is not installed, the file is no parquet.
    """
    import_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a parquet file, or cut short ({reason}); fetch it again") from error


def _batches(path: Path, columns: list[str] | None, tally: Tally) -> Iterator[Any]:
    """Record batches; rows that a damaged page hides are counted as read and dropped, each of them."""
    file = open_parquet(path)
    import pyarrow as pa

    consumed, rows_all, rows_read = tally.input_bytes, file.metadata.num_rows, 0
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    batch_rows = int(max(1, min(MAX_BATCH_ROWS, BATCH_BYTES / max(1, row_bytes))))
    batches = file.iter_batches(batch_size=batch_rows, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None) is not None:
                raise
            lost = rows_all - rows_read
            tally.read += lost
            tally.drop(DAMAGED, f"{path}:{rows_read + 1}", str(error).splitlines()[0][:80], count=lost)
            place = f"{path}: damaged after row {rows_read} of {rows_all}"
            tally.note(f"{place}; what came before is kept, fetch the file again")
            return
        if batch is None:
            return
        rows_read += batch.num_rows
        tally.input_bytes = consumed + path.stat().st_size * rows_read // max(1, rows_all)
        yield batch
