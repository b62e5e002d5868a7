"""Pages of evaluated runs: what is pictured, and what is said where it cannot be."""

import html
import json
import re
import shutil

import numpy as np
import pytest

from diffux2ct.cli import compare
from diffux2ct.comparison.find_runs import read_runs
from diffux2ct.comparison.volumes import known_root
from diffux2ct.data.io.volume import read_own_ct, write_nifti
from diffux2ct.errors import UserError

NAMES = ["half", "whole & <b>", "inverted"]
PLANES = ("axial", "coronal", "sagittal")


@pytest.fixture
def runs(compared_runs, tmp_path):
    """Copies, to be spoilt."""
    return [shutil.copytree(run, tmp_path / run.name) for run in compared_runs]


def page_of(runs, tmp_path, *options):
    path = tmp_path / "page.html"
    compare.run([*map(str, runs), "--out", str(path), *options])
    text = path.read_text(encoding="utf-8")
    told = [html.unescape(line) for line in re.findall(r"<p class=control>([^<]*)</p>", text)]
    return text, [html.unescape(alt) for alt in re.findall(r'<img src="[^"]*" alt="([^"]*)"', text)], told


def change_summary(run, **changes):
    path = run / "evaluation" / "phantom-test" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_best_median_and_worst_of_the_reference_are_pictured_by_every_run(compared_runs, tmp_path):
    for reference in ("half", "inverted"):
        text, alts, told = page_of(compared_runs, tmp_path, "--reference", reference)
        assert told == []
        (run,) = [each for each in read_runs(compared_runs)[0] if each.name == reference]
        order = [run.cases.cases[i] for i in np.argsort(-run.cases.scores["psnr3d"])]
        sections = re.findall(r"<section class=case><h2>(\w+) <em>(\w+) case</em>", text)
        assert sections == list(zip(order, ("best", "median", "worst"), strict=True))
        expected = {
            f"{case}: {plane} {who}, {what}"
            for case in order
            for plane in PLANES
            for who in ("truth", *NAMES)
            for what in ("soft window", "bone window", *(["error"] if who != "truth" else []))
        }
        assert sorted(alts) == sorted(expected)
        assert f"by PSNR3D of {reference}" in text
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[\w+/=]+|(?<=>)[\w+/=]{40,}(?=</s)", "", text))


def test_each_metric_has_a_lane_a_run_and_one_for_the_floor(compared_runs, tmp_path):
    text = page_of(compared_runs, tmp_path, "--no-pictures")[0]
    plots = text.split("<figure class=plot>")[1:]
    assert len(plots) == 2
    for plot in plots:
        assert [html.unescape(n) for n in re.findall(r"class=name>([^<]*)<", plot)] == [*NAMES, "floor"]
        assert plot.count("<circle") == 4 * 3
    (run, *_) = read_runs(compared_runs)[0]
    assert f"half median {np.median(run.cases.scores['psnr3d']):.2f} dB" in plots[0]


def test_without_pictures_the_page_is_small(compared_runs, tmp_path):
    text, alts, told = page_of(compared_runs, tmp_path, "--no-pictures")
    assert (alts, told) == ([], [])
    assert "viewer-stage" not in text
    assert "<table id=runs>" in text
    assert len(text) < 40_000 < len(page_of(compared_runs, tmp_path)[0])


def test_further_cases_are_in_the_viewer_alone(compared_runs, tmp_path):
    assert page_of(compared_runs, tmp_path, "--cases", "1")[0].count("<section class=case>") == 1
    with pytest.raises(UserError, match="--cases=0: out of range; give a whole number of at least 1"):
        page_of(compared_runs, tmp_path, "--cases", "0")


def test_a_prepared_folder_that_is_gone_is_said_and_can_be_given(runs, phantoms, tmp_path):
    for run in runs:
        config = run / "config.yaml"
        config.write_text(config.read_text().replace(str(phantoms), str(tmp_path / "gone")), encoding="utf-8")
    text, alts, told = page_of(runs, tmp_path)
    reason = "no prepared data set here; where it was moved, give it as --root"
    assert told == [f"No pictures: {tmp_path / 'gone'}: {reason}"]
    assert alts == []
    assert text.count("<figure class=plot>") == 2
    assert "<table id=runs>" in text
    assert page_of(runs, tmp_path, "--root", str(phantoms))[2] == []
    # What an evaluation names counts before what its run was trained on.
    change_summary(runs[1], root=str(phantoms))
    assert page_of(runs, tmp_path)[2] == []


def test_a_root_is_not_taken_from_a_run_that_was_scored_on_other_data(compared_runs):
    run = read_runs(compared_runs)[0][0]
    assert known_root(run, {"name": "phantom", "root": "a"}) is not None
    assert known_root(run, {"name": "lumbar", "root": "a"}) is None


def test_a_run_whose_volumes_do_not_fit_is_left_out_and_named(runs, tmp_path):
    folder = runs[2] / "evaluation" / "phantom-test" / "reconstructions"
    for path in folder.iterdir():
        ct = read_own_ct(path)
        write_nifti(path, ct.hu[:8], ct.spacing, ct.origin)
    _, alts, (told,) = page_of(runs, tmp_path)
    assert told.startswith("inverted is not in the pictures: ")
    assert "8×16×16 voxels, not 16×16×16 as the truth" in told
    assert len(alts) == 3 * 3 * (2 * 3 + 2)
    for path in folder.iterdir():
        path.unlink()
    (told,) = page_of(runs, tmp_path)[2]
    assert "inverted is not in the pictures: " in told
    for run in runs[:2]:
        shutil.rmtree(run / "evaluation" / "phantom-test" / "reconstructions")
    _, alts, (told,) = page_of(runs, tmp_path)
    assert told.startswith("No pictures: ")
    assert alts == []


def test_a_volume_from_another_place_is_not_the_same_case(runs, tmp_path):
    for path in (runs[1] / "evaluation" / "phantom-test" / "reconstructions").iterdir():
        ct = read_own_ct(path)
        write_nifti(path, ct.hu, ct.spacing, (9.0, 9.0, 9.0))
    (told,) = page_of(runs, tmp_path)[2]
    assert told.startswith("whole & <b> is not in the pictures: ")
    assert "lies elsewhere than the truth" in told


def test_runs_of_another_test_set_are_named_and_left_out(runs, tmp_path):
    change_summary(runs[0], protocol="strict")
    _, alts, (told,) = page_of(runs, tmp_path, "--reference", "inverted")
    assert told.endswith("Scored otherwise, so not in the pictures: half.")
    assert {alt.split()[2].rstrip(",") for alt in alts} == {"truth", "whole", "inverted"}
