"""Tables in a terminal: words are wrapped, numbers never; what does not fit stands below."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from harness.report.formats import heading
from harness.report.table import Table, clean

if TYPE_CHECKING:
    from rich.table import Table as Grid

BORDER = 3  # letters between two columns; one more at the end of a line
WORD = 22  # letters of a word that a column is made wide enough for
NAMES = ("method", "variant")


def terminal(tables: Iterable[Table], width: int | None = None) -> str:
    """Box-drawn tables for people; marks as bold and underline where the terminal has them.

    Columns that do not fit into `width` letters follow as a table of their own, again behind those
    that name the rows. Without `width` a table is as wide as it is.
    """
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    for table in tables:
        blocks = [_fitted(table, block, width) for block in _blocks(table, width)]
        widest = max(sum(each.values()) + BORDER * len(each) + 1 for each in blocks)
        console = Console(file=out, width=max(widest, width or 100))
        prose = min(console.width, 100)
        if table.banner:
            console.print(Text(clean(table.banner), "bold"), width=prose)
        for number, block in enumerate(blocks):
            title = clean(table.title) + (" (continued)" if number else "")
            console.print(_grid(table, block, title))
        for note in table.notes:
            console.print(Text(clean(note), "dim"), width=prose)
    return out.getvalue()


def _blocks(table: Table, width: int | None) -> list[list[int]]:
    """The columns of each table that is drawn: as many as fit, behind what names the rows."""
    if width is None:
        return [list(range(len(table.columns)))]
    named = [i for i, column in enumerate(table.columns) if column.name in NAMES] or [0]
    blocks = [list(named)]
    for index in (i for i in range(len(table.columns)) if i not in named):
        taken = sum(_least(table, each) + BORDER for each in [*blocks[-1], index])
        if taken >= width and len(blocks[-1]) > len(named):
            blocks.append(list(named))
        blocks[-1].append(index)
    return blocks


def _fitted(table: Table, block: Sequence[int], width: int | None) -> dict[int, int]:
    """The width of each column of a block: the least, and where there is room up to the natural."""
    natural = {index: max(map(len, _texts(table, index))) for index in block}
    if width is None:
        return natural
    widths = {index: _least(table, index) for index in block}
    for _ in range(width - 1 - sum(widths.values()) - BORDER * len(block)):
        short = [index for index in block if widths[index] < natural[index]]
        if not short:
            break
        widths[max(short, key=lambda index: natural[index] / widths[index])] += 1
    return widths


def _least(table: Table, index: int) -> int:
    """A number's whole text, a word of any other."""
    column = table.columns[index]
    cells = [line.cells[index] for line in table.lines]
    numbers = [len(clean(cell.text)) for cell in cells if cell.value is not None]
    texts = [heading(column), *(cell.text for cell in cells if cell.value is None)]
    words = [min(len(word), WORD) for text in texts for word in clean(text).split()]
    return max([1, *numbers, *words])


def _texts(table: Table, index: int) -> list[str]:
    return [heading(table.columns[index]), *(clean(line.cells[index].text) for line in table.lines)]


def _grid(table: Table, widths: dict[int, int], title: str) -> Grid:
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=Text(title), title_justify="left")
    for index, width in widths.items():
        column = table.columns[index]
        side: Literal["left", "right"] = "right" if column.numeric else "left"
        grid.add_column(Text(heading(column)), justify=side, width=width, overflow="fold")
    for line in table.lines:
        cells = (line.cells[index] for index in widths)
        grid.add_row(*(Text(clean(cell.text), _STYLE[cell.mark]) for cell in cells))
    return grid


_STYLE = {"": "", "best": "bold", "second": "underline"}
