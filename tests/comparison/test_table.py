"""A comparison's table: what is bold, what is marked, and what each format makes of it."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from diffux2ct.comparison.formats import as_csv, latex, latex_escape, markdown, page
from diffux2ct.comparison.runs import Difference, ScoredRun, choose_metrics
from diffux2ct.comparison.table import Marks, build_table
from diffux2ct.reconstructors.cost import Cost


def scored(
    name: str, psnr3d: float, mae: float, *, steps: int | None = 100, machine: str | None = "CPU, 1 thread", **summary
):
    content = {
        "psnr3d": psnr3d, "mae": mae, "floor": {"psnr3d": 15.0, "mae": 90.0}, "num_cases": 9, "split": "test",
        "dataset": "phantom", "seconds_per_volume": 1.234, "sampling": {"name": "ddim", "num_inference_steps": 10},
    }  # fmt: skip
    cost = Cost(2_014_699, 0, 0.0751, True)
    return ScoredRun(name, Path(name), content | summary, None, steps, 4, (0,), cost, machine)


def table_of(*runs: ScoredRun, **options):
    return build_table(runs, choose_metrics(runs, None), **options)


def cells(table, run: str) -> dict:
    row = next(row for row in table.rows if row.cells[0].text == run)
    return {column.key: cell for column, cell in zip(table.columns, row.cells, strict=True)}


def test_the_best_is_bold_by_its_direction_and_the_floor_marks():
    table = table_of(scored("a", 20.0, 95.0), scored("b", 14.0, 40.0))
    a, b = cells(table, "a"), cells(table, "b")
    assert (a["psnr3d"].best, b["psnr3d"].best) == (True, False)
    assert (a["mae"].best, b["mae"].best) == (False, True)
    assert (a["psnr3d"].marks, b["psnr3d"].marks) == ((), ("†",))
    assert (a["mae"].marks, b["mae"].marks) == (("†",), ())
    assert (a["psnr3d"].text, a["mae"].text, a["parameters"].text) == ("20.00", "95.0", "2.01")
    assert (a["volumes"].value, a["tflop"].text, a["seconds"].text) == (400, "0.0751", "1.23")
    assert table.rows[-1].is_floor
    assert cells(table, "Floor: mean training volume")["mae"].value == 90.0
    assert not any(cell.best for cell in table_of(scored("a", 20.0, 40.0)).rows[0].cells)


def test_the_method_has_a_column_where_it_is_known():
    known = replace(scored("a", 20.0, 40.0), method="x2ct_gan")
    table = table_of(known, scored("b", 19.0, 50.0), sort="method")
    assert [column.key for column in table.columns[:2]] == ["run", "method"]
    assert [row.cells[1].text for row in table.rows] == ["x2ct_gan", "–", "–"]
    assert {len(row.cells) for row in table.rows} == {len(table.columns)}
    assert "method" not in [column.key for column in table_of(scored("b", 19.0, 50.0)).columns]


def test_ties_are_both_bold_and_unknown_values_are_dashes():
    one, two = scored("a", 20.0, 40.0, steps=None), replace(scored("b", 20.0, 41.0), cost=None, seeds=())
    table = table_of(one, two)
    assert cells(table, "a")["psnr3d"].best and cells(table, "b")["psnr3d"].best  # noqa: PT018
    assert [cells(table, "a")[key].text for key in ("steps", "volumes")] == ["–", "–"]
    assert [cells(table, "b")[key].text for key in ("parameters", "tflop", "seeds")] == ["–", "–", "–"]


def test_other_test_sets_stand_apart_with_a_floor_each():
    table = table_of(scored("a", 20.0, 40.0), scored("x", 30.0, 10.0, split="val"), scored("b", 19.0, 50.0))
    assert [row.cells[0].text for row in table.rows] == ["a", "b", table.rows[2].cells[0].text, "x",
                                                         table.rows[4].cells[0].text]  # fmt: skip
    assert [row.is_floor for row in table.rows] == [False, False, True, False, True]
    assert [row.cells[1].text for row in table.rows] == ["A", "A", "A", "B", "B"]
    assert cells(table, "a")["psnr3d"].best
    assert not cells(table, "x")["psnr3d"].best
    (note,) = [note for note in table.notes if note.startswith("Not all scored alike")]
    assert "A: phantom test, 9 cases; B: phantom val, 9 cases" in note
    assert note.endswith("They differ in split.")


def test_notes_say_whether_rows_may_be_compared():
    alike = table_of(scored("a", 20.0, 40.0), scored("b", 19.0, 50.0)).notes
    assert "Volumes seen in training: 400 in every row." in alike
    assert "Seeds: 0 in every row." in alike
    assert any(note.endswith("CPU, 1 thread.") for note in alike)
    other = scored("b", 19.0, 50.0, steps=50, machine="GPU", unavailable={"lpips": "no weights; get them"})
    other = replace(other, seeds=(3,))
    table = table_of(scored("a", 20.0, 40.0), other, problems=["Beware."])
    assert "Volumes seen in training not the same for all: 400 (a); 200 (b)." in table.notes
    assert "Seeds not the same for all: 0 (a); 3 (b)." in table.notes
    assert "Time per volume, not all on one machine: ¹ CPU, 1 thread; ² GPU." in table.notes
    assert (cells(table, "a")["seconds"].marks, cells(table, "b")["seconds"].marks) == (("¹",), ("²",))
    assert table.notes[-2:] == ("Not available (b): lpips: no weights; get them", "Beware.")


def test_rows_sort_within_their_set():
    runs = [scored("b", 18.0, 40.0), scored("a", 20.0, 50.0, steps=5), scored("c", 19.0, 30.0)]
    for key, order in (("psnr3d", "acb"), ("mae", "cba"), ("run", "abc"), ("steps", "abc")):
        names = [row.cells[0].text for row in table_of(*runs, sort=key).rows[:3]]
        assert "".join(names) == order, key


NASTY = r"a_b & 50% {x} $y$ #1 ~z^ \w | <i>*"


@pytest.fixture
def table():
    runs = [replace(scored(NASTY, 20.0, 95.0), spread={"psnr3d": 0.5}), scored("other <u>", 14.0, 40.0)]
    test = Difference("other <u>", NASTY, "psnr3d", -6.0, (-7.0, -5.0), 0.2, 0.4)
    marks = Marks({(NASTY, "psnr3d"): (19.0, 21.0)}, (test,), ("≈: alike.",))
    return table_of(*runs, marks=marks, title="A <title> of 100%")


def test_markdown_has_as_many_cells_in_each_line(table):
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 1}
    assert "**20.00 ± 0.50** (19.00 to 21.00)" in lines[2]
    assert "| 14.00 †≈ |" in lines[3]
    assert "PSNR3D (dB) ↑" in lines[0]
    assert "MAE (HU) ↓" in lines[0]


def test_latex_is_escaped_and_whole(table):
    text = latex(table)
    assert latex_escape("a_b & 50% ±") == r"a\_b \& 50\% $\pm$"
    assert r"a\_b \& 50\% \{x\} \$y\$ \#1 \textasciitilde{}z\textasciicircum{} \textbackslash{}w" in text
    plain = re.sub(r"\\[\\{}%&#$_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert plain.isascii()
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular", "minipage"]
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "minipage", "table"]
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.columns) - 1}
    assert len(re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text)[1]) == len(table.columns)
    assert r"\textbf{20.00 $\pm$ 0.50}" in text
    assert r"14.00$^{\dagger}$$\approx$" in text


def test_csv_holds_full_numbers(table):
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["run"] for row in rows] == [NASTY, "other <u>", "Floor: mean training volume"]
    assert (float(rows[0]["psnr3d"]), rows[0]["psnr3d_sd"], rows[0]["psnr3d_interval"]) == (
        20.0,
        "0.50",
        "19.00 to 21.00",
    )
    assert (float(rows[1]["psnr3d_p"]), rows[0]["psnr3d_p"]) == (0.4, "")
    assert float(rows[0]["parameters"]) == 2_014_699
    assert rows[2]["steps"] == ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text += data


def test_the_page_is_well_formed_escaped_and_asks_nothing_of_the_network(table):
    text = page(table)
    reader = _Reader()
    reader.feed(text)
    assert reader.stack == []
    assert reader.links == []
    assert "http" not in text
    assert NASTY in reader.text
    assert "<i>*" not in text
    assert "<u>" not in text
    assert "A <title> of 100%" in reader.text
    assert "not significant" in reader.text
    assert "−6.000" in reader.text
    assert text.count("<tbody>") == 2  # one test set, and the tests
