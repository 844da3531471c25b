"""Tables as LaTeX: booktabs, words in paragraphs, notes below the tabular."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from harness.report.formats import GROUPS
from harness.report.table import Cell, Column, Table, clean

PACKAGES = r"% \usepackage[T1]{fontenc}\usepackage{array,booktabs,graphicx,textcomp}"
ONE_LINE, MANY = 28, 80  # letters of a cell: set on one line up to the first
WIDEST, ALL = 24, 40  # em, of one paragraph and of a row's together

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    **{char: "\\" + char for char in "&%$#_{}"},
    **{char: f"{{{char}}}" for char in "[]*"},  # options, if a line ended before them
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "–": "--",
    "Δ": r"$\Delta$",
}


def latex(tables: Iterable[Table]) -> str:
    """One `table` environment each, labelled `tab:<name>`; the first line tells the packages."""
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    above, rules = _groups(table.columns)
    caption = " ".join(each for each in (table.title + ".", table.banner) if each)
    return "\n".join(
        [
            PACKAGES,
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', table.name)}}}",
            r"\par\smallskip",
            # no wider than the text, and no wider than it is
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join(alignments(table))}}}",
            r"\toprule",
            *([above, rules] if above else []),
            _row(escaped(column.title) for column in table.columns),
            r"\midrule",
            *(_row(map(cell_text, line.cells)) for line in table.lines),
            r"\bottomrule",
            r"\end{tabular}}",
            *_notes(table.notes),
            r"\end{table}",
            "",
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def alignments(table: Table) -> list[str]:
    """For each column: numbers to the right, words to the left, in a paragraph where it is long.

    The paragraphs share ALL em by their lengths, so that the numbers beside them stay large.
    """
    lengths = [[min(len(cell.text), MANY) for cell in line.cells] for line in table.lines]
    longest = [max(column) for column in zip(*lengths, strict=True)] or [0] * len(table.columns)
    pairs = list(zip(table.columns, longest, strict=True))
    total = sum(length for column, length in pairs if not column.numeric and length > ONE_LINE)
    return [
        "r" if column.numeric else "l" if length <= ONE_LINE else _paragraph(length, total)
        for column, length in pairs
    ]


def _paragraph(letters: int, total: int) -> str:
    width = max(8, min(letters // 2, WIDEST, ALL * letters // total))
    return rf">{{\raggedright\arraybackslash}}p{{{width}em}}"


def _groups(columns: Sequence[Column]) -> tuple[str, str]:
    """The headings over several columns, and the rules under them; "" where no group has a name."""
    cells, rules, start = [], [], 1
    for group, members in itertools.groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        name = GROUPS.get(group, "")
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(name)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if name else []
        start += width
    return (_row(cells), "".join(rules)) if rules else ("", "")


def _notes(notes: Sequence[str]) -> list[str]:
    """The notes as paragraphs below the tabular."""
    if not notes:
        return []
    begin = [r"\par\medskip", r"\begin{minipage}{\textwidth}", r"\footnotesize\raggedright"]
    return [*begin, *(escaped(note) + r"\par" for note in notes), r"\end{minipage}"]


def escaped(text: str) -> str:
    """`text` so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(char, char) for char in clean(text))


def cell_text(cell: Cell) -> str:
    text = escaped(cell.text)
    command = {"best": r"\textbf", "second": r"\underline"}.get(cell.mark)
    return f"{command}{{{text}}}" if command else text
