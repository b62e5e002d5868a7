"""Which runs may be compared, merged seeds, and what the tests say of a table, on made-up scores."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.comparison.scored_runs import scored, with_distances

from diffux2ct.comparison.find_runs import read_evaluation, read_runs
from diffux2ct.comparison.runs import ScoredRun, choose_metrics, differences, test_set_name, test_sets
from diffux2ct.comparison.seeds import merge_seeds
from diffux2ct.comparison.significance import statistics_marks
from diffux2ct.comparison.table import build_table
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import find_metric, metric_of


def test_what_differs_in_the_scoring_parts_test_sets():
    base = scored("a")
    assert differences(base, scored("b", np.zeros(20))) == []
    assert differences(base, scored("b", split="val")) == ["split"]
    assert differences(base, scored("b", dataset="other")) == ["data set"]
    assert differences(base, scored("b", xray_source="shuffled")) == ["X-rays"]
    assert differences(base, scored("b", protocol="x2ct")) == ["protocol"]
    assert differences(base, scored("b", protocol="paper", xray_source="paired")) == []
    assert differences(base, scored("b", np.zeros(19))) == ["cases"]
    (floor,) = differences(base, scored("b", floor=15.1))
    assert floor.startswith("floor")
    assert differences(base, scored("b", floor=15.0001)) == []  # another machine's rounding
    groups = test_sets([base, scored("b", split="val"), scored("c"), scored("d", split="val")])
    assert [[run.name for run in group] for group in groups] == [["a", "c"], ["b", "d"]]
    assert test_set_name(base) == "phantom test, 20 cases of 10 patients"
    assert test_set_name(scored("b", np.zeros(1), xray_source="swapped")) == (
        "phantom test with swapped X-rays, 1 case of 1 patient"
    )
    assert test_set_name(scored("b", np.zeros(1), protocol="x2ct")) == (
        "phantom test, 1 case of 1 patient, protocol x2ct"
    )


def reordered(run: ScoredRun) -> ScoredRun:
    assert run.cases is not None
    return replace(run, cases=run.cases.in_order(run.cases.cases[::-1]))


def test_cases_are_paired_by_name_and_not_by_place():
    values = np.linspace(18, 22, 20)
    runs = [scored("a", values), reordered(scored("b", values + 0.5))]
    assert runs[1].cases.cases[0] == "c19"
    assert runs[1].cases.scores["psnr3d"][0] == 22.5
    assert runs[1].cases.patients[0] == "p9"
    assert len(test_sets(runs)) == 1
    (test,) = statistics_marks(runs, choose_metrics(runs, None), reference="a").tests
    assert test.interval == pytest.approx((0.5, 0.5), abs=1e-9)
    assert test.p == pytest.approx(2 / 2**10)  # every patient is better
    (merged,) = merge_seeds([runs[0], replace(runs[1], name="a", seeds=(1,))])
    np.testing.assert_allclose(merged.cases.scores["psnr3d"], values + 0.25)
    with pytest.raises(ValueError, match="not the same cases"):
        runs[0].cases.in_order(["c0"])


def test_a_run_without_cases_does_not_bring_those_of_others_together():
    """It agrees with both, as all that it tells is their number."""
    other = scored("b")
    other = replace(other, cases=replace(other.cases, cases=tuple(f"d{i}" for i in range(20))))
    old = replace(scored("old"), cases=None)
    groups = test_sets([old, scored("a"), other])
    assert [[run.name for run in group] for group in groups] == [["old", "a"], ["b"]]
    notes = build_table([old, scored("a"), other], choose_metrics([old], None)).notes
    assert any(note.endswith("They differ in cases.") for note in notes)
    merged = merge_seeds([replace(run, seeds=(k,)) for k, run in enumerate((old, scored("a"), other))])
    assert [run.seeds for run in merged] == [(0, 1), (2,)]


def test_directions_and_units():
    assert metric_of("psnr3d").better(2.0, 1.0)
    for key, unit in (("mae", "HU"), ("mae_bone", "HU"), ("hd95_sacrum", "mm"), ("implant_tip_mm", "mm"),
                      ("implant_axis_deg", "deg"), ("lpips", ""), ("fd_ct", "")):  # fmt: skip
        assert metric_of(key).better(1.0, 2.0), key
        assert metric_of(key).unit == unit, key
    assert metric_of("dice_bone").larger_is_better
    assert metric_of("implant_recall").larger_is_better
    assert (metric_of("psnr3d").title, metric_of("psnr3d").unit, metric_of("psnr3d").digits) == ("PSNR3D", "dB", 2)
    assert (metric_of("stranger").title, metric_of("stranger").larger_is_better) == ("stranger", None)


def test_counts_of_a_case_are_no_metric():
    run = scored("a", [20.0, 21.0], implant_unseen=1.5, left_out={"implant_unseen": 3})
    assert run.cases is not None
    run = replace(run, cases=replace(run.cases, scores={**run.cases.scores, "implant_unseen": np.array([1.0, 2.0])}))
    assert "implant_unseen" not in [metric.key for metric in choose_metrics([run], ["all"])]
    with pytest.raises(UserError, match="--metrics=implant_unseen: no such choice"):
        choose_metrics([run], ["implant_unseen"])


def test_intervals_of_one_seed_are_not_those_of_the_merged_row():
    told = {"intervals": {"psnr3d": [1.0, 2.0]}, "bootstrap": {"seed": 0}}
    (merged,) = merge_seeds([scored("a", [20.0], seed=0, **told), scored("b", [21.0], seed=1, **told)])
    assert not {"intervals", "bootstrap"} & set(merged.summary)
    assert merge_seeds([scored("a", [20.0], **told)])[0].summary["intervals"] == told["intervals"]


def test_metrics_are_chosen_in_the_order_asked_for():
    run = scored("a", ssim=0.5, mae=30.0, floor=15.0)
    run.summary["floor"].update(ssim=0.1, mae=90.0)
    assert [m.key for m in choose_metrics([run], None)] == ["psnr3d", "ssim", "mae"]
    assert [m.key for m in choose_metrics([run], ["mae", "psnr3d"])] == ["mae", "psnr3d"]
    with pytest.raises(UserError, match=r"--metrics=psnr3: no such choice; did you mean psnr3d\? choose from"):
        choose_metrics([run], ["psnr3"])
    # With many, the headline's stand for the rest.
    many = {f"dice_{i}": 0.5 for i in range(12)}
    run.summary["floor"].update(many)
    run.summary.update(many)
    assert [m.key for m in choose_metrics([run], None)] == ["psnr3d", "ssim", "mae"]
    assert len(choose_metrics([run], ["all"])) == 15
    # Of the whole set, without a floor or a value per case; and what is no metric although it is a number.
    whole = scored("a", fd_ct=3.5)
    assert [m.key for m in choose_metrics([whole], None)] == ["psnr3d", "fd_ct"]
    assert [m.key for m in choose_metrics([whole], ["fd_ct"])] == ["fd_ct"]
    with pytest.raises(UserError, match="--metrics=num_cases: no such choice"):
        choose_metrics([whole], ["num_cases"])
    with pytest.raises(UserError, match="metrics.json holds no metric"):
        choose_metrics([ScoredRun("x", Path("x"), {"num_cases": 3})], None)


def test_damaged_evaluations_end_in_one_line(tmp_path):
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON; run evaluate.py again"):
        read_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(UserError, match="not what this program writes"):
        read_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"psnr3d": 20.0}))
    assert read_evaluation(tmp_path) == ({"psnr3d": 20.0}, None)
    for text in (
        "case_id,patient,psnr3d\nc0,p0,x\n",
        "psnr3d\n1.0\n",
        "case_id,patient,psnr3d\nc0,p0\n",
        "case_id,patient,psnr3d\nc0,p0,1,2\n",
        "case_id,patient,psnr3d\nc0,p0,1\nc0,p0,1\n",
        "case_id,patient,psnr3d\n",
        "case_id,patient,psnr3d\nc0,p0,nan\n",
        "case_id,patient,psnr3d\nc0,p0,1e300\n",
        "case_id,patient,psnr3d\n../c0,p0,1\n",
        "case_id,patient,psnr3d\nc\x000,p0,1\n",
    ):
        (tmp_path / "per_case.csv").write_text(text)
        with pytest.raises(UserError, match="per_case.csv: damaged"):
            read_evaluation(tmp_path)
    (tmp_path / "per_case.csv").write_text("case_id,patient,psnr3d,floor_psnr3d\nc0,p0,,1.5\n")
    cases = read_evaluation(tmp_path)[1]
    assert np.isnan(cases.scores["psnr3d"][0])
    assert cases.scores["floor_psnr3d"][0] == 1.5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"floor": {"psnr3d": None}}, "floor of psnr3d is no number"),
        ({"floor": {"psnr3d": "x"}}, "floor of psnr3d is no number"),
        ({"floor": [15.0]}, "floor is no section"),
        ({"floor": None}, "floor is no section"),
        ({"num_scored": {"psnr3d": [1]}}, "num_scored of psnr3d is no number"),
        ({"num_cases": "8"}, "num_cases is no whole number"),
        ({"num_cases": -1}, "num_cases is no whole number"),
        ({"num_cases": 10**400}, "num_cases is no whole number"),
        ({"step": [3]}, "step is no whole number"),
        ({"psnr3d": [20.0]}, "psnr3d is no number"),
        ({"psnr3d": 10**400}, "psnr3d is no number"),
        ({"psnr3d": 1e300}, "psnr3d is no number"),
        ({"floor": {"psnr3d": 1e300}}, "floor of psnr3d is no number"),
        ({"run": "a\nb"}, "run is no text"),
        ({"root": "a\0b"}, "root is no text"),
        ({"weights": ["ema"]}, "weights is no text"),
        ({"split": ["test"]}, "split is no text"),
        ({"sampling": "ddim"}, "sampling is no section"),
        ({"sampling": {"eta": "much"}}, "eta is no number"),
        ({"segmenter": "runs/vnet"}, "segmenter is no section"),
        ({"num_cases": 2}, "per_case.csv: holds 1 case, and metrics.json is of 2"),
    ],
)
def test_what_no_evaluation_writes_is_named_in_one_line(tmp_path, content, told):
    (tmp_path / "per_case.csv").write_text("case_id,patient,psnr3d\nc0,p0,1.5\n")
    (tmp_path / "metrics.json").write_text(json.dumps({"psnr3d": 1.5, "num_cases": 1} | content))
    with pytest.raises(UserError, match=re.escape(told)) as error:
        read_evaluation(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"psnr3d": NaN}', '{"psnr3d": -Infinity}', "[" * 100_000, '{"a": 1', "\xff", ""])
@pytest.mark.parametrize("name", ["metrics.json", "provenance.json"])
def test_damaged_json_ends_in_one_line(tmp_path, name, text):
    folder = tmp_path / "run" / "evaluation" / "test"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    (folder / "metrics.json").write_text('{"psnr3d": 20.0, "num_cases": 1}')
    target = folder / name if name == "metrics.json" else tmp_path / "run" / name
    target.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=rf"{name}: not readable as JSON; r") as error:
        read_runs([folder])
    assert "\n" not in str(error.value)


def test_rows_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = ["a/demo", "b/demo", "a/demo.1"]  # of the third, another training has taken the place since
    for name in folders:
        folder = tmp_path / name / "evaluation" / "test"
        folder.mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("name: demo\n")
        (folder / "metrics.json").write_text('{"psnr3d": 20.0, "num_cases": 1, "run": "demo"}')
    runs, _ = read_runs([tmp_path / name for name in folders])
    assert [run.name for run in runs] == ["a/demo", "b/demo", "demo.1"]
    assert [run.name for run in read_runs([tmp_path / "a/demo"])[0]] == ["demo"]


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "a: ${\n", "\0", "[" * 5000, "a: !!python/object:os.system x\n"])
def test_a_damaged_config_ends_in_one_line(tmp_path, text):
    folder = tmp_path / "run" / "evaluation" / "test"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"psnr3d": 20.0, "num_cases": 1}')
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml: (not readable as YAML|holds no config); restore") as error:
        read_runs([folder])
    assert "\n" not in str(error.value)


def test_hostile_records_and_settings_are_left_out(tmp_path):
    folder = tmp_path / "run" / "evaluation" / "test"
    folder.mkdir(parents=True)
    records = {"bad_title": {"key": "bad_title", "title": [1], "larger_is_better": True},
               "bad_digits": {"key": "bad_digits", "title": "x", "digits": "9"},
               "bad_key": {"key": "psnr3d", "title": "x"}, "no_section": [1]}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps({"psnr3d": 20.0, "num_cases": 1, "metric_records": records}))
    (tmp_path / "run" / "config.yaml").write_text("trainer: {seed: 1e400, batch_size: [4]}\ndataset: [1]\nmodel: 3\n")
    (tmp_path / "run" / "provenance.json").write_text('{"manifest_sha256": 7, "threads": [1]}')
    (run,), _ = read_runs([folder])
    assert [metric.key for metric in choose_metrics([run], ["all"])] == ["psnr3d"]
    assert (run.seeds, run.batch_size, run.train_set) == ((), None, None)
    assert find_metric("bad_title") is find_metric("bad_digits") is find_metric("bad_key") is None


def test_what_an_evaluation_did_not_know_may_be_null(tmp_path):
    unknown = dict.fromkeys(("weights", "num_cases", "sampling", "segmenter", "unavailable"))
    (tmp_path / "metrics.json").write_text(json.dumps({"psnr3d": 1.5} | unknown))
    assert read_evaluation(tmp_path)[0]["psnr3d"] == 1.5


def test_an_error_of_matched_structures_never_stands_alone():
    """Without its share, and without its number of cases, a mean over what was found says nothing."""
    distances = np.where(np.arange(20) < 5, 2.0, np.nan)
    run = with_distances(scored("a"), distances)
    run = replace(run, summary={**run.summary, "dice_bone": 0.5, "floor": {**run.floor, "hd95_bone": 9.0}})
    metrics = choose_metrics([run], ["hd95_bone"])
    assert [metric.key for metric in metrics] == ["hd95_bone", "dice_bone"]
    whole = with_distances(scored("a"), np.full(20, 2.0))
    for each, shown in ((run, "5 of 20"), (whole, "20 of 20")):
        cell = build_table([each], [metric_of("hd95_bone")]).rows[0].cells[-1]
        assert (cell.text, cell.scored) == ("2.00", shown)


def test_a_mean_over_other_cases_than_its_floor_is_not_marked():
    some = np.where(np.arange(20) < 5, 12.0, np.nan)
    for floor, marks in ((np.full(20, 9.0), ()), (np.where(np.isnan(some), np.nan, 9.0), ("†",))):
        run = with_distances(scored("a"), some)
        cases = replace(run.cases, scores={**run.cases.scores, "floor_hd95_bone": floor})
        run = replace(run, cases=cases, summary={**run.summary, "floor": {"psnr3d": 15.0, "hd95_bone": 9.0}})
        assert build_table([run], [metric_of("hd95_bone")]).rows[0].cells[-1].marks == marks


def test_a_mean_over_other_cases_chooses_no_reference():
    less = with_distances(scored("less"), np.where(np.arange(20) < 12, 1.0, np.nan))
    full = with_distances(scored("full"), np.linspace(2.0, 3.0, 20))
    tests = statistics_marks([full, less], [metric_of("hd95_bone")]).tests
    assert {test.reference for test in tests} == {"full"}


def test_seeds_merge_into_mean_and_spread():
    values = np.linspace(18, 22, 20)
    runs = [scored("full", values + k, seed=k, experiment="0") for k in range(3)]
    other = scored("other", values, experiment="3")
    merged, alone = merge_seeds([runs[0], other, *runs[1:]])
    assert (merged.name, merged.seeds, alone) == ("full", (0, 1, 2), other)
    assert merged.score("psnr3d") == pytest.approx(21.0)
    assert merged.spread["psnr3d"] == pytest.approx(1.0)  # of 20, 21, 22, with n - 1
    assert merged.score("seconds_per_volume") == pytest.approx(2.0)
    assert merged.summary["num_cases"] == 20
    np.testing.assert_allclose(merged.cases.scores["psnr3d"], values + 1)
    assert merged.merged == tuple(run.folder for run in runs)
    # Another budget, another sampler, other cases: not the same experiment's result.
    for apart in (scored("full", values, seed=1, sampling={"eta": 1.0}), scored("full", values[:10], seed=1)):
        assert len(merge_seeds([runs[0], apart])) == 2
    with pytest.raises(UserError, match=r"full and full are the same experiment with the same seed 1"):
        merge_seeds([runs[1], runs[1]])


def test_merged_seeds_are_of_the_cases_that_every_seed_has():
    first, second = np.linspace(9, 11, 20), np.linspace(9, 11, 20) + 2
    first[:4] = np.nan
    second[:2], second[16:] = 500.0, np.nan
    seeds = [with_distances(scored("a", seed=k), values) for k, values in enumerate((first, second))]
    (merged,) = merge_seeds(seeds)
    shared = np.linspace(9, 11, 20)[4:16]
    assert merged.score("hd95_bone") == pytest.approx(shared.mean() + 1)
    assert merged.spread["hd95_bone"] == pytest.approx(2 / 2**0.5)
    assert merged.num_scored("hd95_bone") == 12
    np.testing.assert_array_equal(np.isfinite(merged.values("hd95_bone")), [4 <= k < 16 for k in range(20)])
    marks = statistics_marks([merged], choose_metrics([merged], ["hd95_bone"]), intervals=True)
    low, high = marks.intervals["a", "hd95_bone"]
    assert shared.min() + 1 <= low < merged.score("hd95_bone") < high <= shared.max() + 1


def test_merged_seeds_without_a_common_case_have_no_score_and_say_why():
    first, second = np.full(20, 9.0), np.full(20, 11.0)
    first[:10], second[10:] = np.nan, np.nan
    seeds = [with_distances(scored("a", seed=k), values) for k, values in enumerate((first, second))]
    (merged,) = merge_seeds(seeds)
    assert merged.score("hd95_bone") is None
    assert merged.score("psnr3d") == pytest.approx(20.0)
    told = build_table([merged], choose_metrics([merged], None)).notes
    assert "Not available (all): hd95_bone: no case has a value in every seed" in told
    # Without per_case.csv means are merged where all cases have a value, and nowhere else.
    unknown = [replace(run, cases=None) for run in seeds]
    unknown[1].summary["num_scored"] = {"hd95_bone": 10}
    (merged,) = merge_seeds(unknown)
    assert (merged.score("hd95_bone"), merged.score("psnr3d")) == (None, pytest.approx(20.0))
    assert "without per_case.csv these are unknown" in merged.summary["unavailable"]["hd95_bone"]
