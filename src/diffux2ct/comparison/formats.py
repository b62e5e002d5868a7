"""A comparison as Markdown, LaTeX (booktabs), CSV or one HTML page."""

import csv
import io
import re
from typing import Any

from diffux2ct.comparison.pictures import NO_PICTURES, Pictures
from diffux2ct.comparison.table import Cell, Column, Table
from diffux2ct.viz.pages import templates

_LATEX = {
    **{character: rf"\{character}" for character in "{}%&#$_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "†": r"$^{\dagger}$",
    "−": r"$-$",
    "–": "--",
    "…": r"\ldots{}",
    "√": r"$\surd$",
    **{digit: f"$^{{{number}}}$" for number, digit in enumerate("¹²³⁴⁵⁶⁷⁸⁹", start=1)},
}


def heading(column: Column) -> str:
    """Title, unit in brackets, and the direction that is better: "PSNR3D (dB) ↑"."""
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.title}{unit}{'' if not column.better else ' ↑' if column.better > 0 else ' ↓'}"


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown, its notes as lines beneath it."""
    head = [_markdown_escape(heading(column)) for column in table.columns]
    rule = ["---" if index == 0 else "--:" for index in range(len(head))]
    lines = [head, rule] + [[_markdown_cell(c, row.is_floor) for c in row.cells] for row in table.rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {_markdown_escape(note)}" for note in table.notes)
    return f"{body}\n\n{notes}\n"


def _markdown_escape(text: str) -> str:
    # An underscore within a word is plain in GitHub's Markdown; a leading or trailing one is not.
    return re.sub(r"([\\`*|<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _markdown_cell(cell: Cell, is_floor: bool) -> str:
    number = _markdown_escape(cell.number)
    strong = f"**{number}**" if cell.best else f"*{number}*" if is_floor and cell.value is not None else number
    marks = f" {''.join(cell.marks)}" if cell.marks else ""
    return strong + marks + (f" ({_aside(cell)})" if _aside(cell) else "")


def _aside(cell: Cell) -> str:
    return "; ".join(part for part in (cell.interval, cell.scored) if part)


def latex(table: Table) -> str:
    r"""A ``table`` environment in booktabs' style; needs ``\usepackage{booktabs}`` and ``\usepackage[T1]{fontenc}``."""
    width = len(table.columns)
    head = " & ".join(_latex_heading(column) for column in table.columns) + r" \\"
    body = []
    for row in table.rows:
        if row.is_floor:
            body.append(r"\midrule")
        body.append(" & ".join(_latex_cell(cell, row.is_floor) for cell in row.cells) + r" \\")
        if row.is_floor and row is not table.rows[-1]:
            body.append(r"\midrule")
    rows = "\n".join(body)
    notes = "\n".join(f"\\par {latex_escape(note)}" for note in table.notes)
    return rf"""% Needs \usepackage{{booktabs}} and \usepackage[T1]{{fontenc}}.
\begin{{table}}[tbp]
\centering
\caption{{{latex_escape(table.title)}}}
\small
\begin{{tabular}}{{l{"r" * (width - 1)}}}
\toprule
{head}
\midrule
{rows}
\bottomrule
\end{{tabular}}
\medskip
\begin{{minipage}}{{\linewidth}}\footnotesize
{notes}
\end{{minipage}}
\end{{table}}
"""


def latex_escape(text: str) -> str:
    """Plain text for LaTeX: its special characters and the signs that tables use; anything else passes."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_heading(column: Column) -> str:
    unit = f" ({latex_escape(column.unit)})" if column.unit else ""
    arrow = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}[column.better]
    return f"{latex_escape(column.title)}{unit}{arrow}"


def _latex_cell(cell: Cell, is_floor: bool) -> str:
    number = latex_escape(cell.number)
    strong = rf"\textbf{{{number}}}" if cell.best else number
    strong = rf"\textit{{{number}}}" if is_floor and cell.value is not None else strong
    marks = "".join(latex_escape(mark) for mark in cell.marks)
    return strong + marks + (rf" {{\scriptsize ({latex_escape(_aside(cell))})}}" if _aside(cell) else "")


def as_csv(table: Table) -> str:
    """Numbers in full, a column per key; spread, interval, cases scored, p and marks in columns of their own."""
    rows: list[dict[str, Any]] = [{} for _ in table.rows]
    for index, column in enumerate(table.columns):
        cells = [row.cells[index] for row in table.rows]
        parts = {
            "": [cell.value for cell in cells],
            "_sd": [cell.spread for cell in cells],
            "_interval": [cell.interval for cell in cells],
            "_scored": [cell.scored for cell in cells],
            "_p": [cell.p for cell in cells],
            "_marks": ["".join(cell.marks) for cell in cells],
        }
        for suffix, values in parts.items():
            if not suffix or any(value not in ("", None) for value in values):
                for row, value in zip(rows, values, strict=True):
                    row[column.key + suffix] = value
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def page(table: Table, pictures: Pictures = NO_PICTURES) -> str:
    """The HTML page, one file: table, tests and ``pictures``; columns sort at a click."""
    packages = ("diffux2ct.comparison", "diffux2ct.evaluation.report", "diffux2ct.viz")
    columns = {column.key: column for column in table.columns}
    template = templates(*packages).get_template("comparison.html")
    return template.render(table=table, columns=columns, pictures=pictures)
