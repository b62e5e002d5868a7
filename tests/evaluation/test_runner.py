import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn
from torch.testing import assert_close

from diffux2ct.data.dataset import PreparedDataset
from diffux2ct.data.prepare import finish_dataset, write_case
from diffux2ct.errors import UserError
from diffux2ct.evaluation.distortion import METRICS
from diffux2ct.evaluation.runner import evaluate

SIZE, SPACING = 16, (2.0, 2.0, 2.0)
ORIGINS = {"case0": (-10.0, 20.5, 300.0), "case1": (1.0, 2.0, 3.0), "case2": (0.0, -7.25, 11.0)}
NAMES = list(ORIGINS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A prepared folder of blobs: three cases to test on and two to take the mean of."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), axis=-1)
    for name in [*NAMES, "train0", "train1"]:
        hu = np.full((SIZE,) * 3, -1024.0)
        for _ in range(3):
            centre, radius = rng.uniform(4, 12, 3), rng.uniform(2, 4)
            hu[np.linalg.norm(grid - centre, axis=-1) < radius] = rng.uniform(0, 900)
        origin = ORIGINS.get(name, (0.0, 0.0, 0.0))
        write_case(
            root, name, hu.astype(np.int16), SPACING, origin, "parallel", meta={"patient": f"p-{name}"}
        )
    settings = {
        "spacing": SPACING[0],
        "size": SIZE,
        "window": [-1024.0, 1500.0],
        "preset": "parallel",
        "seed": 0,
    }
    finish_dataset(root, "blobs", {"train": ["train0", "train1"], "val": [], "test": NAMES}, settings)
    return root


@pytest.fixture
def dataset(root):
    return PreparedDataset(root, "test")


@pytest.fixture
def mean_volume(root):
    return PreparedDataset(root, "train").mean_volume()


class BackProjector(nn.Module):
    """The mean of both X-rays smeared through the volume, plus noise: random, and depends on its X-rays."""

    def __init__(self, noise=0.1):
        super().__init__()
        self.noise, self.calls = noise, []

    def reconstruct(self, xrays, *, generator=None, scale=1.0):
        assert torch.is_inference_mode_enabled()
        frontal, lateral = xrays["frontal"], xrays["lateral"]
        self.calls.append((self.training, scale, {view: image.clone() for view, image in xrays.items()}))
        volume = (frontal[:, :, :, None, :] + lateral[:, :, :, :, None]) / 2
        return scale * volume + self.noise * torch.randn(volume.shape, generator=generator)


def read(out):
    return json.loads((out / "metrics.json").read_text()), list(csv.DictReader((out / "per_case.csv").open()))


def snapshot(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_writes_metrics_with_their_floor(dataset, mean_volume, tmp_path):
    out = tmp_path / "runs" / "blobs-test"
    context = {"run": "backprojection", "dataset": "blobs", "split": "test"}
    summary = evaluate(
        BackProjector(),
        dataset,
        out,
        sampling={"scale": 0.9},
        seed=3,
        mean_volume=mean_volume,
        context=context,
    )
    metrics, rows = read(out)
    assert metrics == summary
    assert {path.name for path in out.iterdir()} == {
        "metrics.json",
        "per_case.csv",
        "report.html",
        "reconstructions",
    }
    assert metrics["num_cases"] == 3
    assert metrics["sampling"] == {"scale": 0.9}
    assert (metrics["seed"], metrics["xray_source"], metrics["split"]) == (3, "paired", "test")
    assert metrics["seconds_per_volume"] > 0
    assert list(metrics["floor"]) == list(METRICS)
    for name, metric in METRICS.items():
        floor = [metric(mean_volume[0], dataset[index]["volume"][0]) for index in range(3)]
        assert_close(metrics["floor"][name], float(np.mean(floor)))
        assert_close([float(row[f"floor_{name}"]) for row in rows], floor)
        assert_close(metrics[name], float(np.mean([float(row[name]) for row in rows])))
    assert [(row["case_id"], row["patient"]) for row in rows] == [(name, f"p-{name}") for name in NAMES]


def test_the_mean_volume_scores_its_own_floor(dataset, mean_volume, tmp_path):
    class Mean:
        def reconstruct(self, xrays, *, generator=None):
            return mean_volume[None]

    summary = evaluate(Mean(), dataset, tmp_path / "out", sampling={}, mean_volume=mean_volume)
    assert {name: summary[name] for name in METRICS} == summary["floor"]


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


def test_a_case_does_not_depend_on_the_others(root, mean_volume, tmp_path):
    whole = PreparedDataset(root, "test")
    evaluate(BackProjector(), whole, tmp_path / "whole", sampling={}, seed=5, mean_volume=mean_volume)
    short = PreparedDataset(root, "test")
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
    two = evaluate(
        BackProjector(0.0), dataset, tmp_path / "2", sampling={}, mean_volume=mean_volume, batch_size=2
    )
    assert_close([two[name] for name in METRICS], [one[name] for name in METRICS])
    assert two["batch_size"] == 2


def test_controls_change_the_xrays_and_nothing_else(dataset, mean_volume, tmp_path):
    given = {}
    for source in ("paired", "shuffled", "swapped"):
        model = BackProjector()
        summary = evaluate(
            model, dataset, tmp_path / source, sampling={}, mean_volume=mean_volume, xray_source=source
        )
        assert summary["xray_source"] == source
        given[source] = [xrays for _, _, xrays in model.calls]
    for index in range(3):
        own, following = (
            dataset[index],
            dataset[(index + 1) % 3],
        )  # of three patients, half-way round is the next
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


class Failing:
    """Breaks on its second case in a chosen way."""

    def __init__(self, failure):
        self.failure, self.count = failure, 0

    def reconstruct(self, xrays, *, generator=None):
        self.count += 1
        volume = torch.zeros(1, 1, SIZE, SIZE, SIZE)
        return self.failure(volume) if self.count == 2 else volume


def interrupt(volume):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (interrupt, KeyboardInterrupt, None),
        (
            lambda volume: volume.index_fill(4, torch.tensor([3]), torch.nan),
            UserError,
            "case1: .*NaN or infinite",
        ),
        (lambda volume: volume + torch.inf, UserError, "case1: .*NaN or infinite"),
        (lambda volume: volume[..., :8], UserError, r"case1: .*\(1, 16, 16, 8\).*\(1, 16, 16, 16\)"),
    ],
    ids=["interrupted", "nan", "infinite", "shape"],
)
def test_a_broken_evaluation_leaves_the_former_one(dataset, mean_volume, tmp_path, failure, error, message):
    out = tmp_path / "out"
    evaluate(BackProjector(), dataset, out, sampling={}, mean_volume=mean_volume)
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message):
        evaluate(Failing(failure), dataset, out, sampling={}, mean_volume=mean_volume)
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # And a whole one takes its place.
    evaluate(BackProjector(), dataset, out, sampling={}, seed=9, mean_volume=mean_volume)
    assert read(out)[0]["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_evaluation_lost_between_two_renames_comes_back(dataset, mean_volume, tmp_path):
    out = tmp_path / "out"
    evaluate(BackProjector(), dataset, out, sampling={}, mean_volume=mean_volume)
    before = snapshot(out)
    out.rename(tmp_path / ".out.former")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Failing(interrupt), dataset, out, sampling={}, mean_volume=mean_volume)
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xray_source": "reversed"}, "xray_source: .*paired, shuffled, swapped"),
        ({"metrics": ["psnr", "fid"]}, "unknown metric 'fid'; choose from psnr, psnr3d, ssim, ssim3d"),
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
