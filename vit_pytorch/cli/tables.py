"""Tables in plain text."""

from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Lay out rows in columns.

    Args:
        header: Names of the columns.
        rows: Cells.
        right: Columns that are aligned to the right.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (
        "  ".join(f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in (header, *rows)
    )
    return "\n".join(lines)
