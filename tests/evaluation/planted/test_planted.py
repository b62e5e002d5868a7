"""Planted objects through a whole evaluation: what sees everything, nothing, and a part."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.evaluation.blobs import read
from torch.testing import assert_close

from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.writer import finish_dataset, read_case, write_case
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric_set import MetricSet
from diffux2ct.evaluation.planted.family import PlantedObjects
from diffux2ct.evaluation.planted.objects import Planted
from diffux2ct.evaluation.planted.settings import Planting
from diffux2ct.evaluation.runner import evaluate
from diffux2ct.evaluation.scored_case import ScoredCase
from diffux2ct.intensity import block_mean, normalize_hu
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.drr import render_pair

SIZE, STEP = 32, 6.0
SETTINGS = Planting(diameters=[16.0, 32.0], contrast=60.0)
KEYS = ("16mm", "32mm", "screw")


def trunk(lung: float) -> np.ndarray:
    """HU: a trunk with a spine and a lung, cut at both ends by the cube."""
    z, y, x = (np.indices((SIZE,) * 3) + 0.5) / SIZE * 2 - 1
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    hu[(x + 0.4) ** 2 + y**2 + z**2 < lung] = -800.0
    hu[x**2 + (y - 0.35) ** 2 < 0.04] = 400.0
    return hu


def written(root, **more):
    for case_id, lung in (("a", 0.06), ("b", 0.1)):
        write_case(root, case_id, trunk(lung), (STEP,) * 3, (0.0,) * 3, "lumbar", **more)
    settings = {"size": SIZE, "spacing": STEP, "camera": "lumbar"}
    finish_dataset(root, "trunks", {"test": ["a", "b"]}, settings)
    return root


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    return written(tmp_path_factory.mktemp("planted") / "trunks")


@dataclass(frozen=True)
class Noted(Planted):
    """An object that notes the CT it was put into."""

    notes: list = field(default_factory=list)

    def put(self, hu, shares, window):
        self.notes.append(super().put(hu, shares, window))
        return self.notes[-1]


class Oracle:
    """A perfect method, which looks up the CT behind the X-rays it is given, and keeps these."""

    def __init__(self, dataset, metrics):
        self.dataset, self.notes, self.given = dataset, [], []
        metrics.planted.objects = [
            Noted(each.key, each.radius, each.half, each.contrast, self.notes) for each in metrics.planted.objects
        ]

    def reconstruct(self, xrays, *, generator=None):
        self.given.append((dict(xrays), self.notes[-1] if self.notes else None))
        if not self.notes:
            data = self.dataset
            index = min(range(2), key=lambda i: (data[i]["lateral"] - xrays["lateral"][0]).abs().max())
            return data[index]["volume"][None]
        hu = block_mean(self.notes.pop().astype(np.float32), SIZE // self.dataset.size)
        return torch.from_numpy(normalize_hu(hu))[None, None]


class Blind:
    """Draws a volume, and does not look at its X-rays."""

    def reconstruct(self, xrays, *, generator=None):
        n = xrays["frontal"].shape[-1]
        return torch.randn(1, 1, n, n, n, generator=generator).clamp(-1, 1)


class Smeared:
    """Both X-rays smeared through the volume, plus noise."""

    def reconstruct(self, xrays, *, generator=None):
        volume = (xrays["frontal"][:, :, :, None, :] + xrays["lateral"][:, :, :, :, None]) / 4
        return volume + 0.1 * torch.randn(volume.shape, generator=generator)


def planted(data, method, out, **more):
    metrics = MetricSet.make(["planted"], planting=SETTINGS)
    mean = torch.zeros(1, *(data.size,) * 3)
    method = method(data, metrics) if method is Oracle else method
    return method, evaluate(
        method, data, out, sampling={}, mean_volume=mean, metrics=metrics, num_report_cases=0, **more
    )


@pytest.mark.parametrize("size", [32, 16])
def test_a_perfect_method_recovers_all_of_it_where_it_is(trunks, tmp_path, size):
    data = PreparedDataset(trunks, "test", size=size, xray_normalization="fixed")
    oracle, summary = planted(data, Oracle, tmp_path / "out")
    for key in KEYS:
        assert_close(summary[f"planted_contrast_{key}"], 1.0, rtol=0, atol=1e-3)
        assert summary[f"planted_auc_{key}"] == 1.0
        assert summary[f"planted_dprime_{key}"] > 5
        assert summary[f"planted_error_mm_{key}"] < STEP * SIZE / size
    # A reconstruction, one without, one for each sphere and two of the screw, of both cases.
    assert len(oracle.given) == 2 * 6
    assert [key for key in summary["floor"] if "planted" in key] == []
    assert summary["planted"] == {"diameters": [16.0, 32.0], "contrast": 60.0, "displacement": 8.0, "seed": 0}


def test_x_rays_are_taken_as_the_case_was_prepared(trunks, tmp_path):
    data = PreparedDataset(trunks, "test", size=16, xray_normalization="fixed")
    oracle, _ = planted(data, Oracle, tmp_path / "out")
    item, (prepared, _), (without, _), (with_sphere, hu) = data[0], *oracle.given[:3]
    camera = Camera.from_dict(read_case(trunks, "a")["camera_geometry"])
    expected = render_pair(hu, STEP, camera, SIZE)
    for view in VIEWS:
        assert_close(without[view], prepared[view])
        assert torch.equal(prepared[view][0], item[view])
        assert_close(with_sphere[view][0, 0].numpy(), block_mean(expected[view], 2) / 4 - 1)
        assert with_sphere[view].sum() > without[view].sum()
        assert torch.equal(with_sphere["camera"], prepared["camera"])


def test_a_method_that_does_not_look_recovers_nothing(trunks, tmp_path):
    summary = planted(PreparedDataset(trunks, "test"), Blind(), tmp_path / "out")[1]
    for key in KEYS:
        assert (summary[f"planted_contrast_{key}"], summary[f"planted_auc_{key}"]) == (0.0, 0.5)
        assert summary[f"planted_dprime_{key}"] == 0.0
        assert f"planted_error_mm_{key}" not in summary  # there is nothing to find


def test_what_is_seen_in_part_lies_between_and_comes_into_report_and_table(trunks, tmp_path):
    data = PreparedDataset(trunks, "test", size=16, xray_normalization="fixed")
    first, again = (planted(data, Smeared(), tmp_path / name)[1] for name in "xy")
    assert 0 < first["planted_contrast_32mm"] < 0.9
    assert 0.5 < first["planted_auc_32mm"] <= 1
    scores = {key: value for key, value in first.items() if key.startswith("planted")}
    assert scores == {key: again[key] for key in scores}
    rows, page = read(tmp_path / "x")[1], (tmp_path / "x" / "report.html").read_text()
    assert float(rows[0]["planted_contrast_32mm"]) != float(rows[1]["planted_contrast_32mm"])
    assert "<th scope=row>Sphere 32 mm</th>" in page
    assert page.count('alt="a: CT with a planted object') == 2 * len(KEYS)


def test_x_rays_of_others_are_refused_in_one_line(tmp_path):
    radiographs = {view: np.ones((SIZE, SIZE), np.float32) for view in VIEWS}
    root = written(tmp_path / "taken", xrays=radiographs, meta={"xrays": "stored"})
    summary = planted(PreparedDataset(root, "test"), Blind(), tmp_path / "out")[1]
    line = summary["unavailable"]["planted"]
    assert "those of a were stored with the scan; leave it out" in line
    assert "\n" not in line
    with pytest.raises(UserError, match="xray_source=shuffled: planted objects"):
        planted(PreparedDataset(root, "test"), Blind(), tmp_path / "out", xray_source="shuffled")


def test_what_fits_nowhere_has_no_score(trunks):
    data = PreparedDataset(trunks, "test")
    case = ScoredCase.of(data.cases[0], data[0]["volume"], data.window)
    family = PlantedObjects(Planting(diameters=[180.0]))
    scores = family.score(case, lambda pair: data[0]["volume"])
    assert scores["planted_contrast_180mm"] is scores["planted_error_mm_180mm"] is None
    assert scores["planted_contrast_screw"] == 0.0
