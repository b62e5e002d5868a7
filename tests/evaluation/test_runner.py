from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tests.evaluation.blobs import NAMES, ORIGINS, SIZE, SPACING, BackProjector, read
from torch import nn
from torch.testing import assert_close

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.diffusion.consistency import Consistency
from diffux2ct.errors import UserError
from diffux2ct.evaluation.fidelity import distortion
from diffux2ct.evaluation.metric import metric
from diffux2ct.evaluation.metric_set import DEFAULT_NAMES, MetricSet
from diffux2ct.evaluation.runner import evaluate
from diffux2ct.evaluation.statistics import bootstrap_interval
from diffux2ct.reconstructors.precision import effective


def test_writes_metrics_with_their_floor(dataset, mean_volume, tmp_path):
    out = tmp_path / "runs" / "blobs-test"
    context = {"run": "backprojection", "dataset": "blobs", "split": "test"}
    summary = evaluate(
        BackProjector(), dataset, out, sampling={"scale": 0.9}, seed=3, mean_volume=mean_volume, context=context
    )
    metrics, rows = read(out)
    assert metrics == summary
    assert {path.name for path in out.iterdir()} == {"metrics.json", "per_case.csv", "report.html", "reconstructions"}
    assert metrics["num_cases"] == 3
    assert metrics["sampling"] == {"scale": 0.9}
    assert (metrics["seed"], metrics["xray_source"], metrics["split"]) == (3, "paired", "test")
    assert metrics["seconds_per_volume"] > 0
    assert list(metrics["floor"]) == list(DEFAULT_NAMES)
    for name in DEFAULT_NAMES:
        floor = [getattr(distortion, name)(mean_volume[0], dataset[index]["volume"][0]) for index in range(3)]
        assert_close(metrics["floor"][name], float(np.mean(floor)))
        assert_close([float(row[f"floor_{name}"]) for row in rows], floor)
        assert_close(metrics[name], float(np.mean([float(row[name]) for row in rows])))
    assert [(row["case_id"], row["patient"]) for row in rows] == [(name, f"p-{name}") for name in NAMES]


@pytest.mark.parametrize("source", ["paired", "shuffled"])
def test_consistency_is_with_the_xrays_that_each_case_is_given(phantoms, tmp_path, source):
    class Blurred:
        """The true CTs without detail, of the cases in their order."""

        def __init__(self):
            self.volumes = iter([dataset[index]["volume"] for index in range(3)])

        def reconstruct(self, xrays, *, generator=None, consistency=None):
            blurred = nn.functional.avg_pool3d(next(self.volumes)[None], 3, 1, 1)
            return blurred if consistency is None else consistency(blurred)

    dataset = PreparedDataset(phantoms, "test", xray_normalization="fixed")
    mean, residuals = PreparedDataset(phantoms, "train").mean_volume(), {}
    for sampling in ({}, {"consistency": Consistency(5)}):
        out = tmp_path / f"{len(sampling)}"
        metrics = MetricSet.make(["xrays"], functions=[])
        made = evaluate(
            Blurred(), dataset, out, sampling=sampling, mean_volume=mean, metrics=metrics, xray_source=source
        )
        residuals[len(sampling)] = made["xray_residual_frontal"]
        assert made["sampling"] == ({"consistency": 5} if sampling else {})
    if source == "paired":
        assert residuals[1] < 0.3 * residuals[0]
    else:
        assert residuals[1] > residuals[0]


def test_each_mean_has_its_interval_over_patients(dataset, mean_volume, tmp_path):
    class Padded:
        """Three cases are too few: each comes three times, the last time as another patient's."""

        def __init__(self):
            self.window = dataset.window
            self.cases = [
                replace(case, case_id=f"{case.case_id}-{k}", patient=f"{case.patient}-{k // 2}")
                for k in range(3)
                for case in dataset.cases
            ]

        def __len__(self):
            return len(self.cases)

        def __getitem__(self, index):
            return dataset[index % 3]

    summary = evaluate(BackProjector(), Padded(), tmp_path / "many", sampling={}, mean_volume=mean_volume)
    rows = read(tmp_path / "many")[1]
    patients = [row["patient"] for row in rows]
    assert len(set(patients)) == 6
    assert set(summary["intervals"]) == set(DEFAULT_NAMES)
    for name, (low, high) in summary["intervals"].items():
        values = np.array([float(row[name]) for row in rows])
        assert [low, high] == list(bootstrap_interval(values, patients, seed=summary["bootstrap"]["seed"]))
        assert low < summary[name] < high
    assert summary["bootstrap"] == {"confidence": 0.95, "num_resamples": 10000, "over": "patients", "seed": 0}
    few = evaluate(BackProjector(), dataset, tmp_path / "few", sampling={}, mean_volume=mean_volume)
    assert not {"intervals", "bootstrap", "left_out"} & set(few)


def test_the_mean_volume_scores_its_own_floor(dataset, mean_volume, tmp_path):
    class Mean:
        def reconstruct(self, xrays, *, generator=None):
            return mean_volume[None]

    summary = evaluate(Mean(), dataset, tmp_path / "out", sampling={}, mean_volume=mean_volume)
    assert {name: summary[name] for name in DEFAULT_NAMES} == summary["floor"]


def test_nifti_lies_where_the_case_lies(dataset, mean_volume, tmp_path):
    class Truth:
        def reconstruct(self, xrays, *, generator=None):
            index = next(i for i in range(3) if torch.equal(dataset[i]["frontal"], xrays["frontal"][0]))
            return dataset[index]["volume"][None]

    summary = evaluate(Truth(), dataset, tmp_path / "out", sampling={}, mean_volume=mean_volume)
    assert summary["psnr3d"] == 100.0
    for index, name in enumerate(NAMES):
        image = sitk.ReadImage(str(tmp_path / "out" / "reconstructions" / f"{name}.nii.gz"))
        assert image.GetPixelID() == sitk.sitkInt16
        assert_close(image.GetSpacing(), SPACING)
        assert_close(image.GetOrigin(), ORIGINS[name])
        assert_close(image.GetDirection(), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
        stored = np.load(dataset.cases[index].path / "volume.npy")
        assert (sitk.GetArrayFromImage(image) == stored).all()


def test_a_case_does_not_depend_on_the_others(blobs_root, mean_volume, tmp_path):
    whole = PreparedDataset(blobs_root, "test")
    evaluate(BackProjector(), whole, tmp_path / "whole", sampling={}, seed=5, mean_volume=mean_volume)
    short = PreparedDataset(blobs_root, "test")
    short.cases = short.cases[:2]
    evaluate(BackProjector(), short, tmp_path / "short", sampling={}, seed=5, mean_volume=mean_volume)
    for rows in zip(read(tmp_path / "whole")[1][:2], read(tmp_path / "short")[1], strict=True):
        without_time = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        assert without_time[0] == without_time[1]
    evaluate(BackProjector(), short, tmp_path / "other", sampling={}, seed=6, mean_volume=mean_volume)
    assert read(tmp_path / "other")[0]["psnr3d"] != read(tmp_path / "short")[0]["psnr3d"]


def test_each_case_has_noise_of_its_own(dataset, mean_volume, tmp_path):
    class Noise:
        def __init__(self, wasted):
            self.wasted, self.draws = wasted, []

        def reconstruct(self, xrays, *, generator=None):
            if not self.draws:
                torch.randn(self.wasted, generator=generator)
            self.draws.append(torch.randn(1, 1, SIZE, SIZE, SIZE, generator=generator))
            return self.draws[-1]

    # The first case of one of the two draws more; the other cases must not notice.
    models = Noise(0), Noise(100)
    for model in models:
        evaluate(model, dataset, tmp_path / "out", sampling={}, seed=1, mean_volume=mean_volume)
    first, second = (model.draws for model in models)
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [False, True, True]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_batches_score_like_single_cases(dataset, mean_volume, tmp_path):
    one = evaluate(BackProjector(0.0), dataset, tmp_path / "1", sampling={}, mean_volume=mean_volume)
    two = evaluate(BackProjector(0.0), dataset, tmp_path / "2", sampling={}, mean_volume=mean_volume, batch_size=2)
    assert_close([two[name] for name in DEFAULT_NAMES], [one[name] for name in DEFAULT_NAMES])
    assert two["batch_size"] == 2


def test_controls_change_the_xrays_and_nothing_else(dataset, mean_volume, tmp_path):
    given = {}
    for source in ("paired", "shuffled", "swapped"):
        model = BackProjector()
        summary = evaluate(model, dataset, tmp_path / source, sampling={}, mean_volume=mean_volume, xray_source=source)
        assert summary["xray_source"] == source
        given[source] = [xrays for _, _, xrays in model.calls]
    for index in range(3):
        own, following = (dataset[index], dataset[(index + 1) % 3])  # of three patients, half-way round is the next
        for view, other in (("frontal", "lateral"), ("lateral", "frontal")):
            assert torch.equal(given["paired"][index][view][0], own[view])
            assert torch.equal(given["shuffled"][index][view][0], following[view])
            assert torch.equal(given["swapped"][index][view][0], own[other])
    floors = [read(tmp_path / source)[0]["floor"] for source in given]
    assert floors[0] == floors[1] == floors[2]


def test_model_is_scored_in_eval_mode_and_handed_back_as_it_was(dataset, mean_volume, tmp_path):
    model = BackProjector().train()
    evaluate(model, dataset, tmp_path / "out", sampling={"scale": 0.5}, mean_volume=mean_volume)
    assert [(training, scale) for training, scale, _ in model.calls] == [(False, 0.5)] * 3
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xray_source": "reversed"}, "xray_source=reversed: .*paired, shuffled, swapped"),
        ({"metrics": ["psnr", "fid"]}, "metrics.names=fid: no such choice; .*choose from .*psnr"),
        ({"metrics": []}, "metrics: none named"),
    ],
)
def test_bad_settings_are_told_before_anything_runs(dataset, mean_volume, tmp_path, arguments, message):
    model = BackProjector()
    with pytest.raises(UserError, match=message):
        evaluate(model, dataset, tmp_path / "out", sampling={}, mean_volume=mean_volume, **arguments)
    assert model.calls == []
    assert list(tmp_path.iterdir()) == []


def test_someone_elses_folder_is_not_replaced(dataset, mean_volume, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else than an evaluation"):
        evaluate(BackProjector(), dataset, tmp_path / "thesis", sampling={}, mean_volume=mean_volume)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_choice_of_metrics_is_honoured(dataset, mean_volume, tmp_path):
    summary = evaluate(
        BackProjector(), dataset, tmp_path / "out", sampling={}, mean_volume=mean_volume, metrics=["ssim3d"]
    )
    assert list(summary["floor"]) == ["ssim3d"]
    assert "psnr3d" not in read(tmp_path / "out")[1][0]


def test_shuffled_xrays_come_from_another_patient_and_each_case_has_its_own_partner():
    from types import SimpleNamespace

    from diffux2ct.evaluation.runner import _other

    class Crops:
        cases = tuple(SimpleNamespace(patient=p) for p in "aaaabbbb")

        window = (-1024.0, 1500.0)

        def __len__(self):
            return 8

        def __getitem__(self, index):
            raise NotImplementedError

    partners = [_other(Crops(), i) for i in range(8)]
    assert sorted(partners) == list(range(8))
    assert all(Crops.cases[i].patient != Crops.cases[j].patient for i, j in enumerate(partners))


class Convolution(nn.Module):
    """Tells in which precision its convolution ran."""

    def reconstruct(self, xrays, *, generator=None):
        volume = xrays["frontal"][:, :, :, None, :].expand(-1, -1, -1, SIZE, -1)
        out = nn.functional.conv3d(volume, torch.ones(1, 1, 1, 1, 1))
        self.dtype = out.dtype
        return out


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_the_reconstructors_and_no_metrics(dataset, mean_volume, tmp_path, precision, dtype):
    seen = []

    @metric("precision_probe", larger_is_better=False)
    def probe(prediction, target):
        seen.append(nn.functional.conv3d(prediction[None, None], torch.ones(1, 1, 1, 1, 1)).dtype)
        return 0.0

    model = Convolution()
    arguments = {"sampling": {}, "mean_volume": mean_volume, "metrics": ["precision_probe"]}
    summary = evaluate(model, dataset, tmp_path / "out", precision=precision, **arguments)
    computed = effective(precision, "cpu")  # fp32 where a CPU has no bf16 arithmetic
    assert model.dtype == (dtype if computed == precision else torch.float32)
    assert set(seen) == {torch.float32}
    assert summary["precision"] == computed
