"""Columns in which no score may be called the best: means over different cases, or by different networks."""

from pathlib import Path

import numpy as np
import pytest

from diffux2ct.comparison.formats import as_csv, latex, markdown, page
from diffux2ct.comparison.runs import CaseScores, ScoredRun, depends_on_segmenter, test_sets
from diffux2ct.comparison.significance import statistics_marks
from diffux2ct.comparison.table import build_table
from diffux2ct.evaluation.metric import metric_of

CASES = tuple(f"c{i}" for i in range(8))


def scored(name: str, floors: dict | None = None, segmenter: dict | None = None, **columns) -> ScoredRun:
    values = {key: np.asarray(column, float) for key, column in columns.items()}
    means = {key: float(np.nanmean(column)) for key, column in values.items()}
    floor = {"floor": dict.fromkeys(columns, 0.5) | (floors or {})}
    summary = means | floor | {"num_cases": 8, "segmenter": segmenter}
    return ScoredRun(name, Path(name), summary, CaseScores(CASES, CASES, values))


def bold(table, metric: str) -> list[str]:
    place = [column.key for column in table.columns].index(metric)
    return [row.cells[0].text for row in table.rows if row.cells[place].best]


def found_in(count: int, value: float) -> list[float]:
    return [value] * count + [np.nan] * (8 - count)


METRICS = [metric_of("psnr3d"), metric_of("hd95_bone")]


def test_finding_less_is_never_best():
    runs = [
        scored("good", {"hd95_bone": 50.0}, psnr3d=[30.0] * 8, hd95_bone=found_in(8, 10.11)),
        scored("bad", {"hd95_bone": 50.0}, psnr3d=[25.0] * 8, hd95_bone=found_in(1, 6.04)),
    ]
    table = build_table(runs, METRICS)
    assert bold(table, "psnr3d") == ["good"]
    assert bold(table, "hd95_bone") == []
    assert any(note.startswith("Nothing bold in HD95 bone: the means are over") for note in table.notes)
    assert any(note.startswith("n of m") for note in table.notes)
    assert "6.04 (1 of 8)" in markdown(table)
    assert r"6.04 {\scriptsize (1 of 8)}" in latex(table)
    assert "6.04<small>1 of 8</small>" in page(table)
    head, good, bad, _ = (line.split(",") for line in as_csv(table).splitlines())
    place = head.index("hd95_bone_scored")
    assert (good[place], bad[place]) == ("8 of 8", "1 of 8")


def test_the_same_cases_may_be_compared_and_others_of_the_same_number_not():
    few = found_in(5, 9.0)
    same = [scored(n, psnr3d=[20.0] * 8, hd95_bone=np.array(few) + k) for k, n in enumerate("ab")]
    assert bold(build_table(same, METRICS), "hd95_bone") == ["a"]
    assert not any(note.startswith("Nothing bold") for note in build_table(same, METRICS).notes)
    other = scored("c", psnr3d=[20.0] * 8, hd95_bone=few[::-1])
    assert bold(build_table([same[1], other], METRICS), "hd95_bone") == []


def test_numbers_of_cases_are_known_without_a_table_by_case():
    summary = {"psnr3d": 20.0, "hd95_bone": 6.0, "num_cases": 8, "floor": {"psnr3d": 0.5}}
    less = ScoredRun("old", Path("old"), summary | {"num_scored": {"hd95_bone": 3}})
    table = build_table([less, ScoredRun("all", Path("all"), summary | {"hd95_bone": 9.0})], METRICS)
    assert bold(table, "hd95_bone") == []
    assert "6.00 (3 of 8)" in markdown(table)


@pytest.mark.parametrize(
    ("key", "depends"),
    [("dice_heart", True), ("hd95_labels_lung", True), ("segmented_vertebra_found", True), ("dice_bone", False),
     ("hd95_bone", False), ("psnr3d", False), ("vertebra_found", False), ("dice_foreground", True)],
)  # fmt: skip
def test_what_a_network_segments(key, depends):
    assert depends_on_segmenter(key) == depends


def test_scores_by_different_networks_share_a_set_and_are_not_bold():
    metrics = [metric_of("psnr3d"), metric_of("dice_heart")]
    first, second = {"run": "vnet", "step": 100}, {"run": "vnet", "step": 200}
    high, low = ({"psnr3d": [30.0] * 8, "dice_heart": [0.9] * 8}, {"psnr3d": [25.0] * 8, "dice_heart": [0.8] * 8})
    runs = [scored("a", segmenter=first, **high), scored("b", {"dice_heart": 0.7}, second, **low)]
    table = build_table(runs, metrics)
    assert len(test_sets(runs)) == 1
    assert (bold(table, "psnr3d"), bold(table, "dice_heart")) == (["a"], [])
    (note,) = [note for note in table.notes if note.startswith("Neither bold nor tested: Dice heart")]
    assert "a: vnet, step 100; b: vnet, step 200" in note
    assert table.rows[-1].cells[-1].text == "–"  # there is no one floor
    assert [test.metric for test in statistics_marks(runs, metrics).tests] == ["psnr3d"]
    alike = [scored("a", segmenter=first, **high), scored("b", segmenter=first, **low)]
    assert bold(build_table(alike, metrics), "dice_heart") == ["a"]
    # Older evaluations do not name the network: only their floor may tell it.
    old = scored("b", **low)
    assert bold(build_table([alike[0], old], metrics), "dice_heart") == ["a"]
    old = scored("b", {"dice_heart": 0.7}, **low)
    assert bold(build_table([alike[0], old], metrics), "dice_heart") == []
