import sys
from pathlib import Path

import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.evaluation import fidelity
from diffux2ct.evaluation.metric import (
    _RECORDS,
    Metric,
    find_metric,
    function_keys,
    function_names,
    measure,
    metric,
    metric_of,
    read_records,
)
from diffux2ct.evaluation.metric_set import MetricSet


def test_every_metric_has_a_unit_a_direction_and_one_line():
    units = {"dB", "HU", "mm", "deg", ""}
    function_names()  # imports every module that registers some
    for key, record in _RECORDS.items():
        assert record.unit in units, key
        assert record.title, key
        assert len(record.about.splitlines()) == 1, key
        # In this field what counts in HU, mm or degrees is an error, and decibels are good.
        assert record.unit == "" or record.larger_is_better == (record.unit == "dB"), key


@pytest.mark.parametrize(
    ("key", "title", "unit", "better"),
    [("dice_left_hip", "Dice left hip", "", True), ("hd95_sacrum", "HD95 sacrum", "mm", False)],
)
def test_metrics_of_structures_are_described_by_their_name(key, title, unit, better):
    record = find_metric(key)
    assert record is not None
    assert (record.title, record.unit, record.larger_is_better) == (title, unit, better)


def test_what_is_no_metric_has_no_description():
    assert [find_metric(key) for key in ("seconds", "dice", "dice_", "case_id")] == [None] * 4
    assert find_metric("dice_bone") == _RECORDS["dice_bone"]


def test_variants_of_a_structures_metrics_differ_in_title_and_floor():
    labels, ceiling = metric_of("dice_labels_left_hip"), metric_of("hd95_ceiling_left_hip")
    assert (labels.title, labels.floor) == ("Dice left hip, labels", True)
    assert (ceiling.title, ceiling.unit, ceiling.floor) == ("HD95 left hip, ceiling", "mm", False)
    segmented = metric_of("segmented_vertebra_height_mm")
    assert (segmented.title, segmented.group) == ("Vertebral height error, segmented", "Vertebrae")


@pytest.mark.parametrize(
    ("larger", "difference", "side"),
    [(True, 1, "better"), (True, -1, "worse"), (False, -1, "better"), (False, 0, ""), (None, 1, "")],
)
def test_a_record_judges_differences_by_its_direction(larger, difference, side):
    assert Metric("a", "A", larger_is_better=larger).side(difference) == side


OWN = """
from diffux2ct.evaluation.metric import metric

@metric("{key}", title="Mean shift", unit="HU", larger_is_better=False, volumes="hu", about="absolute")
def shift(prediction, target):
    return float((prediction - target).mean().abs())

def undescribed(prediction, target):
    return 0.0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's with one metric in HU."""
    (tmp_path / "my_metrics.py").write_text(OWN.format(key="own_shift"))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_metrics.shift"
    sys.modules.pop("my_metrics", None)


def test_an_own_function_is_found_by_its_dotted_path_and_measured_in_hu(own):
    assert function_keys(["psnr3d", own]) == ["psnr3d", "own_shift"]
    zero = torch.zeros(4, 4, 4)
    assert measure("own_shift", zero + 0.5, zero, (-1000, 1000)) == 500
    record = metric_of("own_shift")
    assert (record.title, record.text(12.34)) == ("Mean shift", "12.3 HU")
    assert not record.better(2, 1)


def test_an_own_metric_stands_beside_the_families_and_its_record_in_metrics_json(own):
    metrics = MetricSet.make(["bones"], functions=["psnr3d", own])
    assert [family.name for family in metrics.families] == ["functions", "bones"]
    stored = metrics.context["metric_records"]
    assert list(stored) == ["own_shift"]
    assert stored["own_shift"]["larger_is_better"] is False
    assert "metric_records" not in MetricSet.make(["bones"], functions=["psnr3d"]).context


def test_records_of_metrics_json_are_read_and_never_replace_known_ones():
    stored = {"title": "Elsewhere", "unit": "mm", "larger_is_better": False}
    read_records({"metric_records": {"elsewhere": {"key": "elsewhere"} | stored, "psnr3d": {"key": "psnr3d"} | stored,
                                     "damaged": {"surplus": 1}}})  # fmt: skip
    assert (metric_of("elsewhere").title, metric_of("elsewhere").digits) == ("Elsewhere", 2)
    assert metric_of("psnr3d").title == "PSNR3D"
    assert find_metric("damaged") is None


def test_a_file_in_a_package_of_metrics_is_found_by_name(tmp_path):
    """In a new process, with one more folder in the package's path as a dropped file would have."""
    import subprocess

    (tmp_path / "dropped.py").write_text(OWN.format(key="dropped"))
    code = (
        f"from diffux2ct.evaluation import fidelity; fidelity.__path__.append({str(tmp_path)!r})\n"
        "from diffux2ct.evaluation.metric import function_keys, metric_of\n"
        "print(function_keys(['dropped']), metric_of('dropped').title)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dropped'] Mean shift"
    assert Path(fidelity.__file__).name == "__init__.py"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"about": "x"}, "metric own: no direction; add larger_is_better="),
        ({"larger_is_better": True, "colour": 1}, "metric own: .*colour.*; its fields are title, unit"),
    ],
)
def test_a_record_without_direction_or_with_unknown_fields_is_refused(record, message):
    with pytest.raises(UserError, match=message):
        metric("own", **record)(lambda prediction, target: 0.0)
    assert "own" not in function_names()


def test_a_taken_name_is_refused():
    with pytest.raises(UserError, match=r"metric psnr: diffux2ct\.\S+ has one of this name; choose another"):
        metric("psnr", larger_is_better=False)(lambda prediction, target: 0.0)
    assert metric_of("psnr").larger_is_better


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psnr4d", r"metrics.names=psnr4d: no such choice; did you mean psnr3d\? choose from psnr3d, psnr"),
        ("nowhere.at_all", "No module named 'nowhere'; is its folder on PYTHONPATH"),
        ("my_metrics.absent", "my_metrics has no absent; correct the path"),
        ("my_metrics.undescribed", "has no record; decorate it with @metric"),
    ],
)
def test_a_name_that_leads_to_no_metric_gets_one_line(own, name, message):
    with pytest.raises(UserError, match=message):
        function_keys([name])


def test_a_value_that_is_not_finite_is_missing(own):
    volume = torch.zeros(3, 3, 3)
    assert measure("own_shift", volume / 0, volume, (0, 1)) is None
