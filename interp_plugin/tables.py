"""Tables: the rows of a Parquet file by the columns that are wanted; a row that cannot be read says why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO, cast

from interp_plugin.text.models import shown
from interp_plugin.text.storage import load_pyarrow

Column = str | int
"""A column by its name, or by its number, from 0, in a file without a header."""
TableRow = tuple[str, Mapping[Column, Any], str | None]
"""Where a row is, its values by column, and why it cannot be read (then it has no values), or None."""

TEXT_COLUMNS = ("text", "sentence", "content", "review", "document")
BATCH = 2**24  # bytes of a table that are held at a time, about


@dataclass(frozen=True)
class Wanted:
    """The columns that somebody reads.

    Attributes:
        text: of the texts; None: found by their usual names, or the only one of words.
        others: which must be there too.
        usual: which are read where they are there.
    """

    text: Column | None
    others: tuple[Column, ...] = ()
    usual: tuple[str, ...] = ()

    def missing(self, names: Collection[str]) -> list[Column]:
        """Those that must be there and are not."""
        asked = self.others if self.text is None else (self.text, *self.others)
        return [name for name in asked if name not in names]

    def among(self, names: Sequence[str], words: Collection[str]) -> list[str]:
        """Those of the columns to read; ``words`` are the columns that hold strings."""
        texts = [name for name in TEXT_COLUMNS if name in words] or list(words)
        chosen = {*(texts if self.text is None else (self.text,)), *self.others, *self.usual}
        return [name for name in names if name in chosen]


def table_rows(opened: BinaryIO, file: str, wanted: Wanted | None = None) -> Iterator[TableRow]:
    """The rows of a Parquet file, those that cannot be read among them.

    Args:
        opened: the file; seekable.
        file: its name.
        wanted: the columns to read; None: all.

    Raises:
        ImportError: pyarrow is missing.
        OSError: the disk or the network fails; of damage in the file the rows tell.
    """
    arrow, parquet = load_pyarrow(f"reading {file!r}")
    watched = _Watched(opened)
    number = 0
    try:
        # neither whole columns of a row group in memory, nor damage that decompresses
        table = parquet.ParquetFile(
            watched, buffer_size=2**16, pre_buffer=False, page_checksum_verification=True
        )
        groups = [table.metadata.row_group(place) for place in range(table.num_row_groups)]
        schema = table.schema_arrow
    except (arrow.ArrowException, OSError) as error:
        watched.raise_failure()
        yield (file, {}, f"not a Parquet file that can be read ({first_line(error)})")
        return
    chosen = schema.names
    if wanted is not None:
        missing = wanted.missing(chosen)
        if missing:
            reason = f"no column {missing[0]!r}: there are {names_of(dict.fromkeys(chosen))}; choose one"
            for row in range(1, table.metadata.num_rows + 1):
                yield (f"{file}, row {row}", {}, reason)
            return
        chosen = wanted.among(chosen, [field.name for field in schema if _holds_words(arrow, field.type)])
    for place, group in enumerate(groups):
        end = number + group.num_rows
        try:
            for batch in table.iter_batches(_rows_at_once(group, chosen), row_groups=[place], columns=chosen):
                yield from _of_batch(batch, file, number)
                number += batch.num_rows
        except (arrow.ArrowException, OSError) as error:
            watched.raise_failure()
            reason = f"in a damaged part of the file ({first_line(error)})"
            for row in range(number + 1, end + 1):
                yield (f"{file}, row {row}", {}, reason)
        number = end


class _Watched:
    """A file of which it is known whether reading it failed: so damage is told from a disk that fails."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._failure = file, cast("OSError | None", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._failure = error
            raise

    def raise_failure(self) -> None:
        """Raise what kept the file from being read, if anything did."""
        if self._failure is not None:
            raise self._failure


def _holds_words(arrow: ModuleType, kind: Any) -> bool:
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _rows_at_once(group: Any, names: Collection[str]) -> int:
    """Rows of a group of a Parquet file to hold at a time, by the size of these columns."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    starts = tuple(f"{name}." for name in names)
    size = sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(starts))
    rows: int = BATCH * group.num_rows // max(1, size)
    return max(1, min(1024, rows))


def _of_batch(batch: Any, file: str, before: int) -> Iterator[TableRow]:
    """The rows of a batch, one by one where they cannot be had together."""
    try:
        rows = batch.to_pylist()
    except Exception as error:  # of as many kinds as there are values that Python cannot hold
        if batch.num_rows == 1:
            yield (f"{file}, row {before + 1}", {}, f"a value that cannot be read ({first_line(error)})")
            return
        for place in range(batch.num_rows):
            yield from _of_batch(batch.slice(place, 1), file, before + place)
        return
    for place, row in enumerate(rows, before + 1):
        yield (f"{file}, row {place}", row, None)


def names_of(values: Mapping[Column, Any]) -> str:
    """The columns of a row, in words."""
    return "columns " + ", ".join(shown(name) if isinstance(name, str) else str(name) for name in values)


def first_line(error: Exception) -> str:
    """What an error says first, to be put in brackets."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
