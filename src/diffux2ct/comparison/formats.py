"""A comparison as Markdown, LaTeX (booktabs) or CSV."""

import csv
import io
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from diffux2ct.comparison.pictures import CASES_STYLE, NO_PICTURES, Pictures
from diffux2ct.comparison.runs import CaseScores, is_number, plural
from diffux2ct.comparison.table import Cell, Column, Row, Table
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import read_records
from diffux2ct.evaluation.report.page import STYLE
from diffux2ct.viz.viewer_page import VIEWER_SCRIPT, VIEWER_STYLE

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "_": r"\_",
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
    number = _markdown_escape(cell.text) + (f" ± {cell.spread}" if cell.spread else "")
    strong = (
        f"**{number}**" if cell.best else f"*{number}*" if is_floor and cell.value is not None else number
    )
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
    notes = "\n".join(f"\\par {latex_escape(note)}" for note in table.notes)
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
            r"\begin{table}[tbp]",
            r"\centering",
            rf"\caption{{{latex_escape(table.title)}}}",
            r"\small",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\medskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            notes,
            r"\end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def latex_escape(text: str) -> str:
    """Plain text for LaTeX: its special characters and the signs that tables use; anything else passes."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_heading(column: Column) -> str:
    unit = f" ({latex_escape(column.unit)})" if column.unit else ""
    arrow = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}[column.better]
    return f"{latex_escape(column.title)}{unit}{arrow}"


def _latex_cell(cell: Cell, is_floor: bool) -> str:
    number = latex_escape(cell.text) + (rf" $\pm$ {cell.spread}" if cell.spread else "")
    strong = rf"\textbf{{{number}}}" if cell.best else number
    strong = rf"\textit{{{number}}}" if is_floor and cell.value is not None else strong
    marks = "".join(latex_escape(mark) for mark in cell.marks)
    return strong + marks + (rf" {{\scriptsize ({latex_escape(_aside(cell))})}}" if _aside(cell) else "")


def as_csv(table: Table) -> str:
    """Numbers in full, a column per key; spread, interval, cases scored, p and marks in columns of their own."""
    extras = {
        "sd": lambda cell: cell.spread,
        "interval": lambda cell: cell.interval,
        "scored": lambda cell: cell.scored,
        "p": lambda cell: "" if cell.p is None else cell.p,
        "marks": lambda cell: "".join(cell.marks),
    }
    columns: list[tuple[int, str, str]] = []
    for index, column in enumerate(table.columns):
        columns.append((index, column.key, ""))
        for name, get in extras.items():
            if any(get(row.cells[index]) != "" for row in table.rows):
                columns.append((index, f"{column.key}_{name}", name))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([title for _, title, _ in columns])
    for row in table.rows:
        cells = [
            extras[name](row.cells[index]) if name else row.cells[index].value for index, _, name in columns
        ]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


# A comparison as one HTML page that asks nothing of the network; columns sort at a click.

_STYLE = """
main { max-width: 1480px; }
#runs th, #runs td { padding: 7px 22px 7px 0; text-align: right; vertical-align: baseline; }
#runs th:first-child, #runs td:first-child { text-align: left; }
#runs thead th { vertical-align: bottom; white-space: normal; }
#runs thead small { display: block; font-weight: 400; }
#runs button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0; }
#runs button { cursor: pointer; }
#runs button:hover, #runs button:focus-visible { color: var(--ink); text-decoration: underline; }
#runs td b { font-weight: 700; }
#runs td small { display: block; }
#runs tr.floor > * { color: var(--soft); font-style: italic; border-bottom: 2px solid var(--line); }
#runs td:first-child { font-weight: 600; white-space: normal; min-width: 16em; overflow-wrap: anywhere; }
#runs tr.floor td:first-child { font-weight: 400; }
i.mark { color: var(--soft); font-style: normal; margin-left: 1px; }
ul.notes { color: var(--soft); font-size: 13px; margin: 16px 0 0; padding-left: 18px; max-width: 110ch; }
"""

_SCRIPT = """
// A table body per test set: rows are sorted within theirs, and its floor stays last.
const heads = [...document.querySelectorAll("#runs thead th")];
heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const first = head.dataset.better === "1" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  heads.forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1, value = row => row.cells[column].dataset.v;
  for (const body of document.querySelectorAll("#runs tbody")) {
    const rows = [...body.querySelectorAll("tr:not(.floor)")];
    const numeric = rows.every(row => !isNaN(value(row)));
    rows.sort((a, b) => {
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      return sign * (numeric ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true }));
    });
    rows.reverse().forEach(row => body.prepend(row));
  }
}));
"""


def page(table: Table, pictures: Pictures = NO_PICTURES) -> str:
    """The whole page: table, tests, and what `comparison_pictures` made."""
    head = "".join(_head(column) for column in table.columns)
    sets = dict.fromkeys(row.test_set for row in table.rows)
    bodies = "".join(
        f"<tbody>{''.join(_row(row) for row in table.rows if row.test_set == number)}</tbody>"
        for number in sets
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = escape(table.title)
    style, script = (VIEWER_STYLE, VIEWER_SCRIPT) if pictures.viewer else ("", "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title} · comparison</title><style>{STYLE}{_STYLE}{CASES_STYLE}{style}</style></head>\n<body><main>"
        f"<header><p class=kicker>DiffuX2CT · comparison</p><h1>{title}</h1></header>\n<section>"
        f"<div class=scroll><table id=runs><thead><tr>{head}</tr></thead>{bodies}</table></div>"
        "<p class=note>Click a heading to sort.</p>"
        f"<ul class=notes>{notes}</ul></section>{_tests(table)}"
        + "\n".join(pictures.sections)
        + f"</main><script>{_SCRIPT}{script}</script></body></html>\n"
    )


def _tests(table: Table) -> str:
    """The differences from the reference, one line a test; nothing where none was made."""
    if not table.tests:
        return ""
    columns = {column.key: column for column in table.columns}
    head = "".join(
        f"<th scope=col>{name}</th>"
        for name in ("Run", "Metric", "Difference", "95 % interval", "p", "p after Holm", "")
    )
    body = []
    for test in table.tests:
        column = columns[test.metric]
        side = "worse" if test.difference * column.better < 0 else "better"
        verdict = f"<td class={side}>{side}</td>" if test.significant else "<td>not significant</td>"
        ends = "–" if test.interval is None else " to ".join(_signed(end) for end in test.interval)
        cells = [_signed(test.difference), ends, f"{test.p_raw:.2g}", f"{test.p:.2g}"]
        body.append(
            f"<tr><td>{escape(test.run)}</td><td>{escape(column.title)}"
            f"{f' <small>{escape(column.unit)}</small>' if column.unit else ''}</td>"
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}{verdict}</tr>"
        )
    names = escape(", ".join(dict.fromkeys(test.reference for test in table.tests)))
    return (
        f"<section><h2>Differences from {names}</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div><p class=note>Run − reference, mean over the cases that "
        "both have a value in: the difference of the table's scores only where both have all cases. The interval is "
        "of this difference alone; for how many comparisons p after Holm stands is said under the table.</p></section>"
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _head(column: Column) -> str:
    arrow = {1: " ↑", -1: " ↓", 0: ""}[column.better]
    unit = f"<small>{escape(column.unit)}{arrow}</small>" if column.unit or arrow else ""
    name = f"<button type=button>{escape(column.title)}{unit}</button>"
    return f'<th scope=col data-better={column.better} title="{escape(column.about, quote=True)}">{name}</th>'


def _row(row: Row) -> str:
    cells = "".join(_cell(cell) for cell in row.cells)
    return f"<tr{' class=floor' if row.is_floor else ''}>{cells}</tr>"


def _cell(cell: Cell) -> str:
    number = escape(cell.text) + (f" ± {escape(cell.spread)}" if cell.spread else "")
    strong = f"<b>{number}</b>" if cell.best else number
    marks = "".join(f"<i class=mark>{escape(mark)}</i>" for mark in cell.marks)
    asides = "".join(f"<small>{escape(text)}</small>" for text in (cell.interval, cell.scored) if text)
    value = "" if cell.value is None else escape(str(cell.value), quote=True)
    return f'<td data-v="{value}">{strong}{marks}{asides}</td>'


# Reads what evaluate.py left, metrics.json and per_case.csv, and refuses what no evaluation writes.

_TEXTS = ("run", "dataset", "split", "xray_source", "protocol", "weights", "root", "processor")
_COUNTS = ("num_cases", "num_train_cases", "batch_size", "threads", "seconds_per_volume")
_SECTIONS = ("sampling", "unavailable", "segmenter")
_SECTIONS_OF_NUMBERS = ("floor", "num_scored")


def read_evaluation(folder: Path) -> tuple[dict[str, Any], CaseScores | None]:
    """metrics.json and per_case.csv (None where there is none) of an evaluation's folder.

    Raises:
        UserError: one of them is damaged, or they are not of the same cases.
    """
    path, table = folder / "metrics.json", folder / "per_case.csv"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON; run evaluate.py again") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: not what evaluate.py writes; run evaluate.py again")
    wrong = _wrong(summary)
    if wrong:
        raise UserError(f"{path}: not what evaluate.py writes: {wrong}; run evaluate.py again")
    read_records(summary)
    cases = _read_cases(table) if table.is_file() else None
    told = summary.get("num_cases")
    if cases is not None and told is not None and told != len(cases.cases):
        counts = f"{plural(len(cases.cases), 'case')}, and metrics.json is of {told}"
        raise UserError(f"{table}: holds {counts}; run evaluate.py again")
    return summary, cases


def _wrong(summary: dict[str, Any]) -> str:
    """What is not as an evaluation writes it of all that a comparison reads; "" where nothing is.

    What is missing or null was not known, but a floor and a number of cases are numbers.
    """
    for key in _TEXTS:
        if not isinstance(summary.get(key), str | None):
            return f"{key} is no text"
    for key in _COUNTS:
        if summary.get(key) is not None and not is_number(summary[key]):
            return f"{key} is no number"
    for key in (*_SECTIONS, *_SECTIONS_OF_NUMBERS):
        if not isinstance(summary.get(key), dict | None):
            return f"{key} is no section"
    for key in _SECTIONS_OF_NUMBERS:
        for name, value in (summary.get(key) or {}).items():
            if not is_number(value):
                return f"{key} of {name} is no number"
    eta = (summary.get("sampling") or {}).get("eta")
    return "" if eta is None or is_number(eta) else "eta is no number"


def _read_cases(path: Path) -> CaseScores:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            names = [n for n in reader.fieldnames or () if n not in ("case_id", "patient", "seconds")]
            rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a line is cut short, or too long")
        scores = {n: np.array([float(row[n]) if row[n] else np.nan for row in rows]) for n in names}
        ids = tuple((row["case_id"], row["patient"]) for row in rows)
        if len({case for case, _ in ids}) < len(ids):
            raise ValueError("a case stands there twice")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged; run evaluate.py again") from error
    return CaseScores(tuple(case for case, _ in ids), tuple(patient for _, patient in ids), scores)
