"""Summaries of cases: errors of matched structures never stand without their share and their number of cases."""

from diffux2ct.evaluation.metric import metric_of
from diffux2ct.evaluation.metric_set import MetricSet
from diffux2ct.evaluation.report.tables import compare_with_floor, headline_figures
from diffux2ct.evaluation.results import score_table, summarize


def rows_of(distances, floors):
    shared = {"dice_bone": 0.5, "floor_dice_bone": 0.2, "seconds": 1.0}
    return [
        {"case_id": f"c{i}", "patient": f"p{i}", "hd95_bone": distance, "floor_hd95_bone": floor, **shared}
        for i, (distance, floor) in enumerate(zip(distances, floors, strict=True))
    ]


def table_line(rows):
    lines = score_table(summarize(rows, MetricSet([]))).splitlines()
    return " ".join(next(line for line in lines if line.startswith("HD95 bone")).split())


def test_metrics_json_and_console_state_the_cases_of_an_error():
    rows = rows_of([9.0, 9.0], [5.0, 5.0])
    assert summarize(rows, MetricSet([]))["num_scored"] == {"hd95_bone": 2, "floor_hd95_bone": 2}
    assert table_line(rows) == "HD95 bone (mm) 9.000 5.000 2 of 2 cases no better than the floor"


def test_an_error_is_not_judged_by_a_floor_of_other_cases():
    rows = rows_of([9.0, None, 9.0], [5.0, 5.0, None])
    assert table_line(rows) == "HD95 bone (mm) 9.000 5.000 2 of 3 cases"
    rows = rows_of([9.0, 9.0, 9.0], [5.0, None, None])
    assert table_line(rows) == "HD95 bone (mm) 9.000 5.000 3 of 3 cases (floor: 1)"
    line = compare_with_floor(metric_of("hd95_bone"), summarize(rows, MetricSet([])), rows)
    assert (line["side"], line["cases"]) == ("", "3 (floor: 1)")


def test_a_report_shows_an_error_after_its_share():
    rows = rows_of([9.0, 9.0], [5.0, 5.0])
    figures = headline_figures(summarize(rows, MetricSet([])), rows, ["hd95_bone", "dice_bone"])
    assert [figure["title"] for figure in figures] == ["Dice bone", "HD95 bone"]
