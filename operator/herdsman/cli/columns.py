"""Columns of text as wide as they need to be; a terminal wraps what is longer than it, and a file keeps it whole."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

_GAP = "  "


def print_columns(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[Text | str]], *, indent: int = 0
) -> None:
    """Print rows under headings; a heading that starts with ">" aligns its column to the right."""
    for line in column_lines(headings, rows, indent=indent):
        console.print(line, soft_wrap=True)


def column_lines(headings: Sequence[str], rows: Sequence[Sequence[Text | str]], *, indent: int = 0) -> Iterator[Text]:
    """Yield the line of the headings, where there are any, and one line for each row."""
    right = [heading.startswith(">") for heading in headings]
    titles = [Text(heading.lstrip(">"), "bold") for heading in headings]
    table = [titles, *[[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]]
    widths = [max(row[place].cell_len for row in table) for place in range(len(headings))]
    for row in table if any(heading for heading in headings) else table[1:]:
        line = Text(" " * indent)
        for place, cell in enumerate(row):
            padding = " " * (widths[place] - cell.cell_len)
            line.append(padding if right[place] else "").append_text(cell).append("" if right[place] else padding)
            line.append(_GAP)
        line.rstrip()
        yield line
