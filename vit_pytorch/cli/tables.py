"""What commands print for people and for programs: tables and JSON."""

import io
import json
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

# rows whose cells decide how wide columns are; later ones may make them wider
BLOCK = 256


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Return rows in columns; see `table_lines`."""
    return "\n".join(table_lines(header, rows, right=right))


def table_lines(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()
) -> Iterator[str]:
    """Yield the lines of a table, a block of rows at a time.

    Args:
        header: Names of the columns.
        rows: Cells.
        right: Columns that are aligned to the right.
    """
    rows, widths = (list(map(_printable, row)) for row in rows), [0] * len(header)
    block = [header, *islice(rows, BLOCK)]
    while block:
        widths = [max(width, *(len(row[i]) for row in block)) for i, width in enumerate(widths)]
        for row in block:
            cells = (
                f"{cell:{'>' if i in right else '<'}{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join(cells).rstrip()
        block = list(islice(rows, BLOCK))


def _printable(cell: str) -> str:
    """Return a cell with spaces for line breaks, which would begin another row, and with escapes for other
    characters that act on the terminal or cannot be seen."""
    line = " ".join(cell.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def print_json(value: Any) -> None:
    """Print a value as JSON, in UTF-8."""
    _use_utf8()
    print(_dump(value))


def print_json_list(values: Iterable[Any]) -> None:
    """Print values as one JSON list, each as soon as it is there; the text is that of `print_json`."""
    _use_utf8()
    before = "["
    for value in values:
        print(f"{before}\n{textwrap.indent(_dump(value), '  ')}", end="", flush=True)
        before = ","
    print("[]" if before == "[" else "\n]")


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _use_utf8() -> None:
    """Write standard output in UTF-8; bytes of file names that are not become escapes, as in JSON."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
