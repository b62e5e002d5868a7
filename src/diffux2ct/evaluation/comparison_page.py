"""A comparison as one HTML page that asks nothing of the network; columns sort at a click."""

from html import escape

from diffux2ct.evaluation.comparison_cases import CASES_STYLE
from diffux2ct.evaluation.comparison_pictures import NO_PICTURES, Pictures
from diffux2ct.evaluation.comparison_table import Cell, Column, Row, Table
from diffux2ct.evaluation.report_page import STYLE
from diffux2ct.viz.viewer_page import VIEWER_SCRIPT, VIEWER_STYLE

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
