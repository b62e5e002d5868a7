"""Calibrate on val, score on test, and reconstruct: from the command line's settings to files."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tests.cli.tiny_run import composed, reconstruct
from torch import nn

from diffux2ct import build
from diffux2ct.cli.evaluate import run
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.evaluation.uncertainty.calibration import Calibration
from diffux2ct.evaluation.uncertainty.fit import spread_of_case
from diffux2ct.files.atomic import sha256_of
from diffux2ct.inference.reconstruction import UNCERTAINTY
from diffux2ct.load import export_model, load_run
from diffux2ct.reconstructors.base import xrays_of
from diffux2ct.training.checkpoints import file as checkpoint

TINY = ["device=cpu", "precision=fp32", "metrics.families=[distortion]", "num_report_cases=1"]
STEPS = "sampler.num_inference_steps=1"


def saved(folder, phantoms, model="posterior_flow"):
    """A run with an untrained model whose draws differ."""
    overrides = [f"model={model}", "dataset.size=16", f"dataset.root={phantoms}", "++dataset.generate=null"]
    cfg = composed("train", "experiment=demo", *overrides, "sampler.num_inference_steps=2")
    torch.manual_seed(0)
    reconstructor = build.build_reconstructor(cfg)
    if model == "posterior_flow":
        reconstructor.flow_trained.fill_(True)
        for part in (reconstructor.mean, reconstructor.flow):
            nn.init.normal_(part.unet.out.weight, std=0.05)  # it starts at 0
    state = {"model": reconstructor.state_dict(), "config": build.plain(cfg), "step": 4}
    checkpoint.save(folder / "checkpoints" / "last.pt", state)
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, phantoms):
    folder = saved(tmp_path_factory.mktemp("runs") / "plus", phantoms)
    evaluate(folder, "uncertainty=calibrate", "interval.alpha=0.7", "num_samples=2", STEPS)
    return folder


def first_spread(folder, phantoms, split):
    """The spread of a split's first case, drawn as `calibrated` draws."""
    loaded, dataset = load_run(folder, "cpu"), PreparedDataset(phantoms, split, size=16)
    draws = loaded.draws({"num_inference_steps": 1}, 2, None, 0, "fp32")
    case = ScoredCase.of(dataset.cases[0], dataset[0]["volume"], dataset.window)
    return spread_of_case(loaded.model, case, {k: v[None] for k, v in xrays_of(dataset[0]).items()}, draws)


def evaluate(folder, *overrides):
    run(composed("evaluate", f"ckpt={folder}", *TINY, *overrides))


def test_a_calibration_is_of_patients_that_are_not_scored(calibrated, phantoms, tmp_path):
    own = Calibration.load(calibrated / "calibration.json")
    assert (own.split, own.num_samples, own.dataset, own.rule.alpha) == ("val", 2, "phantom", 0.7)
    assert own.num_patients["voxels"] == len(own.patients) == 1
    text = (calibrated / "calibration.json").read_text()
    case = PreparedDataset(phantoms, "val").cases[0]
    assert own.contents == [sha256_of(case.path / "volume.npy")]
    assert case.patient not in text
    assert str(phantoms) not in text
    assert own.sampling == {"output": "sample", "num_inference_steps": 1}
    assert set(own.scales) >= {"voxels", "bone_volume"}
    with pytest.raises(UserError, match="1 of the patients to score were calibrated on"):
        evaluate(calibrated, "uncertainty=true", "num_samples=2", STEPS, "split=val")
    # A copy under another name holds the same scans.
    copy = shutil.copytree(phantoms, tmp_path / "renamed")
    (copy / "manifest.csv").write_text((copy / "manifest.csv").read_text() + "\n")
    with pytest.raises(UserError, match="1 of the patients to score were calibrated on"):
        evaluate(calibrated, "uncertainty=true", "num_samples=2", STEPS, "split=val", f"root={copy}")
    for root in ("null", copy):
        with pytest.raises(UserError, match="the model was trained on 6 of these scans"):
            evaluate(calibrated, "uncertainty=calibrate", "split=train", f"root={root}")
    with pytest.raises(UserError, match=r"1 patient; crc at alpha=0.1 needs 9, since.*interval.alpha=0.5"):
        evaluate(calibrated, "uncertainty=calibrate")
    assert Calibration.load(calibrated / "calibration.json") == own


def test_settings_without_effect_are_named(calibrated, capsys):
    with pytest.raises(UserError):
        evaluate(calibrated, "uncertainty=calibrate", "xray_source=shuffled", "split=train")
    assert (
        "warning: metrics.families xray_source num_report_cases: no effect on a calibration" in capsys.readouterr().err
    )
    with pytest.raises(UserError):
        evaluate(calibrated, "uncertainty=calibrate", "sampler.eta=1", "perturbation=zero")
    warned = "warning: sampler.eta=1 perturbation=zero: no effect, a PosteriorFlow has no such setting"
    assert capsys.readouterr().err.count(warned) == 1
    with pytest.raises(UserError):
        evaluate(calibrated, "interval.alpha=0.2", "split=val", "uncertainty=true", "num_samples=2", STEPS)
    assert "warning: interval.alpha: no effect without uncertainty=calibrate" in capsys.readouterr().err


def test_settings_that_the_output_does_not_use_are_refused(calibrated, phantoms, tmp_path):
    sampling = load_run(calibrated, "cpu").sampling
    for settings, words in (
        ({"output": "mean", "blend": 0.5}, "blend=0.5: no effect on output=mean; .*output=ensemble$"),
        ({"output": "mean", "num_samples": 4}, "num_samples=4: no effect on output=mean"),
        ({"num_samples": 4}, "num_samples=4: no effect on output=sample; .*output=ensemble or uncertainty=true"),
    ):
        with pytest.raises(UserError, match=words):
            sampling({}, **settings)
    with pytest.raises(UserError, match="sampler.num_inference_steps=3: no effect on output=mean"):
        sampling({"num_inference_steps": 3}, output="mean")
    # The draws of uncertainty=true use the numbers beside any output; blend they do not.
    assert sampling({"num_inference_steps": 3}, uncertainty=True, output="mean", num_samples=4) == {"output": "mean"}
    with pytest.raises(UserError, match="blend=0.5: no effect"):
        sampling({}, uncertainty=True, output="mean", blend=0.5)
    # Both commands ask for it.
    with pytest.raises(UserError, match="blend=0.5: no effect"):
        evaluate(calibrated, "output=mean", "blend=0.5", f"out={tmp_path / 'out'}")
    with pytest.raises(UserError, match="blend=0.5: no effect"):
        reconstruct(calibrated, next((phantoms / "cases").iterdir()), tmp_path / "out", "output=mean", "blend=0.5")
    assert not (tmp_path / "out").exists()


def test_test_cases_are_scored_by_it_and_the_report_shows_it(calibrated, phantoms):
    evaluate(calibrated, "uncertainty=true", "num_samples=2", STEPS, "max_cases=1")
    (folder,) = (calibrated / "evaluation").iterdir()
    assert folder.name.endswith("-uncertainty2")
    summary = json.loads((folder / "metrics.json").read_text())
    # Coverage again, from the same draws and the written half widths, which are whole HU.
    spread = first_spread(calibrated, phantoms, "test")
    half = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "half_width" / f"{spread.case.case_id}.nii.gz")))
    covered = np.abs(spread.volume.truth - spread.volume.mean) <= half
    assert covered[spread.support].mean() == pytest.approx(summary["coverage"], abs=0.01)
    assert 0 < summary["coverage"] < 1
    # One patient at alpha .7: (R + 1) / 2 <= .7 where 40 % of the calibrated patient's voxels are missed, and no more.
    scale = Calibration.load(calibrated / "calibration.json").scales["voxels"]
    missed = first_spread(calibrated, phantoms, "val").scores(10.0)["voxels"] > scale
    assert missed.mean() == pytest.approx(0.4, abs=0.01)
    assert summary["interval_width"] > 0
    assert summary["coverage_bone_volume"] in (0, 1)
    assert not [key for key in summary["floor"] if key.startswith(("coverage", "spread"))]
    about = summary["uncertainty"]
    assert about["calibration"]["scales"]["voxels"] > 0
    assert sum(each["share"] for each in about["error_against_spread"]) == pytest.approx(1)
    assert 0.5 < about["reached_by_rays"] <= 1
    report = (folder / "report.html").read_text()
    assert "<h2>Uncertainty</h2>" in report
    assert report.count("half width of the interval") == 3
    assert "conformal risk control on 1 patients of phantom val" in report
    assert len(list((folder / "half_width").iterdir())) == 1


def test_other_draws_than_those_calibrated_have_a_spread_and_no_coverage(calibrated, tmp_path, capsys):
    evaluate(calibrated, "uncertainty=true", "num_samples=3", STEPS, "max_cases=1", f"out={tmp_path / 'out'}")
    assert "uncertainty: calibrated with num_samples=2; give the same, or calibrate again" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["spread"] > 0
    assert "coverage" not in summary
    assert "Intervals are not calibrated" in (tmp_path / "out" / "report.html").read_text()


def test_any_method_that_draws_has_a_spread_and_others_are_refused(tmp_path, phantoms, capsys):
    for model in ("diffux2ct", "icm_reg"):
        folder = saved(tmp_path / model, phantoms, model)
        if model == "icm_reg":
            with pytest.raises(UserError, match="draws nothing, so it has no spread"):
                evaluate(folder, "uncertainty=true", "max_cases=1")
            continue
        evaluate(folder, "uncertainty=true", "num_samples=2", "max_cases=1", f"out={tmp_path / 'out'}")
        errors = capsys.readouterr().err
        assert "no effect" not in errors
        assert errors.count("note: num_samples=2: the spread of so few draws is coarse") == 1
        assert f"not calibrated; python evaluate.py ckpt={folder} uncertainty=calibrate does it" in errors
        about = json.loads((tmp_path / "out" / "metrics.json").read_text())["uncertainty"]
        assert (about["num_samples"], about["sampling"]["num_inference_steps"]) == (2, 2)
        assert about["spread_over_error"] > 0
    with pytest.raises(UserError, match="num_samples=1: a spread needs 2 or more"):
        evaluate(tmp_path / "diffux2ct", "uncertainty=true", "num_samples=1")


def test_a_reconstruction_comes_with_its_maps(calibrated, phantoms, tmp_path, capsys):
    case = next((phantoms / "cases").iterdir())
    out = tmp_path / "out"

    def made(ckpt, *overrides):
        reconstruct(ckpt, case, out, *overrides)
        found = {path.name.removesuffix(".nii.gz"): path for path in out.glob("*.nii.gz")}
        return {name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for name, path in found.items()}

    maps = made(calibrated, "uncertainty=true", "num_samples=2", STEPS)
    assert set(maps) == {"reconstruction", *UNCERTAINTY}
    scale = Calibration.load(calibrated / "calibration.json").scales["voxels"]
    inside = (maps["interval_low"] > -1024) & (maps["interval_high"] < 1500)
    assert inside.any()
    width = (maps["interval_high"].astype(float) - maps["interval_low"])[inside]
    np.testing.assert_allclose(width, 2 * scale * (maps["std_hu"][inside] + 10), atol=2)
    assert set(np.unique(maps["ray_support"])) <= {0, 1}
    record = json.loads((out / "reconstruct.json").read_text())
    assert record["uncertainty"]["calibration"]["scales"]["voxels"] == scale
    assert "output: posterior sample, one of many (output=mean gives their mean), 1 step\n" in capsys.readouterr().out
    # An exported model takes its calibration along; other draws have none, and leave no old interval.
    export_model(calibrated, tmp_path / "model")
    same = made(tmp_path / "model", "uncertainty=true", "num_samples=2", STEPS)
    np.testing.assert_array_equal(same["interval_low"], maps["interval_low"])
    capsys.readouterr()
    assert set(made(calibrated, "uncertainty=true", "num_samples=3", STEPS)) == {
        "reconstruction",
        "std_hu",
        "ray_support",
    }
    assert "warning: calibrated with num_samples=2; give the same" in capsys.readouterr().out
    assert set(made(calibrated, STEPS)) == {"reconstruction"}
