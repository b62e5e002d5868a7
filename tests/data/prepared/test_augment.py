import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from diffux2ct import build
from diffux2ct.data.labels import LABELS
from diffux2ct.data.prepared.augment import Augmentation, Deformation, bspline, sources
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.writer import finish_dataset, read_case, write_case
from diffux2ct.errors import UserError
from diffux2ct.intensity import denormalize_hu
from diffux2ct.reconstructors.base import on_device
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.steps import endless_batches
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_pair
from diffux2ct.xray.effects import XrayRandomization
from diffux2ct.xray.pose import Pose

RANGES = ("rotation", "scale", "shear", "shift", "mirror", "elastic", "pose_degrees", "pose_mm", "camera")
SIZE, SIDE = 16, 320.0
NOTHING = Augmentation(**dict.fromkeys(RANGES, 0.0))


def batch_of(data: PreparedDataset, seeds=(5, 6)) -> dict:
    return default_collate([data[i] for i in range(len(seeds))]) | {"seed": torch.tensor(seeds)}


def body(index: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels [16, 16, 16]: a trunk that the crop cuts off at both ends, a spine, and a rib on the left."""
    z, y, x = (np.indices((SIZE,) * 3) + 0.5) / SIZE * 2 - 1
    hu = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 20.0 + 10 * index, -1000.0)
    hu[(x + 0.3) ** 2 + y**2 < 0.05] = -700.0
    spine, rib = x**2 + (y - 0.3) ** 2 < 0.03, (abs(z - 0.2) < 0.15) & (abs(x - 0.5) < 0.2) & (abs(y) < 0.2)
    clavicle = rib & (z > 0.25)
    hu[spine], hu[rib] = 600.0 + 100 * z[spine], 400.0
    return hu, np.where(
        clavicle, LABELS["left_clavicle"], np.where(rib, LABELS["ribs"], np.where(spine, LABELS["L1"], 0))
    ).astype(np.uint8)


def written(root: Path, camera: str, **more) -> Path:
    """Two bodies of 16^3 and 320 mm, with labels."""
    for index, case_id in enumerate("ab"):
        hu, labels = body(index)
        write_case(root, case_id, hu, (SIDE / SIZE,) * 3, (0.0,) * 3, camera, labels=labels, **more)
    finish_dataset(root, "made", {"train": ["a", "b"]}, {"size": SIZE, "spacing": SIDE / SIZE, "camera": camera})
    return root


@pytest.mark.parametrize(
    ("camera", "more"),
    [
        ("lumbar", {}),
        ("parallel", {"attenuation": "water"}),
        ("x2ct", {}),
        ("lumbar", {"projector": "siddon", "attenuation": "two_material"}),
        ("lumbar", {"pose_jitter": {"degrees": 4, "mm": 9}, "pose_seed": 3}),
    ],
)
def test_without_jitter_the_xrays_are_those_that_were_prepared(tmp_path: Path, camera: str, more: dict) -> None:
    data = PreparedDataset(written(tmp_path, camera, **more), augment=NOTHING, xray_normalization="fixed")
    batch = batch_of(data)
    same = data.augment(batch)
    for key in ("volume", *VIEWS, "camera"):
        torch.testing.assert_close(same[key], batch[key], rtol=0, atol=2e-6)


def test_at_half_the_size_they_are_nearly_those_that_were_averaged(tmp_path: Path) -> None:
    data = PreparedDataset(written(tmp_path, "lumbar"), size=8, augment=NOTHING, xray_normalization="fixed")
    batch = batch_of(data)
    for view in VIEWS:
        got, prepared = (x[view] + 1 for x in (data.augment(batch), batch))
        error = (got - prepared).abs()
        found = [float(error.mean() / prepared.mean()), float(error.max() / prepared.max())]
        assert found == pytest.approx({"frontal": [0.0106, 0.0110], "lateral": [0.0171, 0.0130]}[view], rel=0.05)


def test_the_xrays_are_those_of_the_deformed_cube_by_the_moved_camera(tmp_path: Path) -> None:
    """As a preparation would render them, with the camera of the batch and the poses of the draw."""
    data = PreparedDataset(written(tmp_path, "lumbar"), augment=Augmentation(), xray_normalization="fixed")
    batch = batch_of(data)
    new = data.augment(batch)
    for k, seed in enumerate(batch["seed"].tolist()):
        draw = Augmentation().draw(seed)
        preset = camera_preset("lumbar", SIZE, SIDE / SIZE)
        camera = replace(preset, sad=preset.sad * draw.camera[0], sid=preset.sid * draw.camera[1])
        assert preset.sad * 0.97 <= camera.sad <= preset.sad * 1.03
        torch.testing.assert_close(new["camera"][k], torch.tensor(camera.panel_map(320.0)))
        assert not torch.allclose(new["camera"][k], batch["camera"][k], rtol=1e-3, atol=0)
        hu = denormalize_hu(new["volume"][k, 0], data.window).round().numpy()
        pair = render_pair(hu, SIDE / SIZE, camera, SIZE, jitter=draw.poses)
        for view in VIEWS:
            torch.testing.assert_close((new[view][k, 0] + 1) * 4, torch.from_numpy(pair[view]), rtol=0, atol=1e-4)
            assert (new[view][k] - batch[view][k]).abs().mean() > 0.01


def test_views_at_other_angles_are_taken_of_the_same_body(tmp_path: Path) -> None:
    """With a pose of their own, and without a change of what frontal and lateral show."""
    root, angles = written(tmp_path, "lumbar"), [0, 90, 45, 250]
    still = PreparedDataset(root, augment=NOTHING, xray_normalization="fixed", views=angles)
    batch = batch_of(still)
    same = still.augment(batch)
    for view in still.views:
        torch.testing.assert_close(same[view], batch[view], rtol=0, atol=1e-5)
    data = PreparedDataset(root, augment=Augmentation(), xray_normalization="fixed", views=angles)
    two = PreparedDataset(root, augment=Augmentation(), xray_normalization="fixed")
    new, biplanar = data.augment(batch), two.augment(batch_of(two))
    for key in ("volume", *VIEWS, "camera"):
        assert torch.equal(new[key], biplanar[key])
    draw = Augmentation().draw(5, data.views)
    assert len({pose.shift_mm for pose in draw.poses.values()}) == 4
    how = data.augment.acquisitions[0].moved(draw)
    hu = denormalize_hu(new["volume"][0, 0], data.window).round().numpy()
    seen = render_pair(hu, SIDE / SIZE, how.camera, SIZE, jitter=draw.poses, views=["angle_250"])["angle_250"]
    torch.testing.assert_close((new["angle_250"][0, 0] + 1) * 4, torch.from_numpy(seen), rtol=0, atol=1e-4)


def test_a_finer_panel_may_be_thinned_for_a_patient_who_lies_askew(tmp_path: Path) -> None:
    data = PreparedDataset(
        written(tmp_path, "x2ct"), augment=replace(NOTHING, pose_mm=1e-6), xray_normalization="fixed"
    )
    batch = batch_of(data)
    new = data.augment(batch)
    for view in VIEWS:
        got, prepared = new[view] + 1, batch[view] + 1
        assert 0 < (got - prepared).abs().mean() < 0.005 * prepared.mean()


def deformation(**parts) -> Deformation:
    still = Deformation(np.eye(3), np.zeros(3), np.zeros((3, 7, 7, 7)), dict.fromkeys(VIEWS, Pose()), (1.0, 1.0))
    return replace(still, **parts)


def places_mm(draw: Deformation, half: float = 100.0, size: int = 20) -> torch.Tensor:
    """[z, y, x, 3]: (x, y, z) in mm."""
    return sources([draw], [half], torch.zeros(1, 1, size, size, size, dtype=torch.float64))[0] * half


def test_a_point_comes_from_matrix_times_point_and_spline_plus_shift() -> None:
    matrix = np.array([[1.0, 0.1, 0.2], [0.0, 0.9, 0.3], [0.05, 0.0, 1.1]])
    knots = np.zeros((3, 7, 7, 7))
    knots[0] = 0.1  # of 50 mm between two of four cells
    at = places_mm(deformation(matrix=matrix, shift=np.array([3.0, -4.0, 5.0]), knots=knots))
    x, y, z = -95.0, -85.0, 15.0  # centres of the first voxel, the second and the twelfth
    expected = matrix @ (x + 0.1 * 50, y, z) + (3.0, -4.0, 5.0)
    np.testing.assert_allclose(at[11, 1, 0], expected, rtol=0, atol=1e-9)


def test_spline_weights_sum_up_to_one_and_reproduce_a_line() -> None:
    weights = bspline(20, 7, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64))
    line = weights @ (torch.arange(7, dtype=torch.float64) - 1) / 4
    torch.testing.assert_close(line, (torch.arange(20, dtype=torch.float64) + 0.5) / 20)


def test_the_strongest_elastic_deformation_folds_nowhere() -> None:
    """All knots at their bounds, toward a plane across the cube: the Jacobian's determinant stays positive.

    Under any matrix, too: half the size, where a displacement that came after the matrix would fold.
    """
    matrix = 0.5 * np.array([[0.0, -1.0, 0.05], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    z, y, x = np.indices((7, 7, 7)) - 3
    for across in (x, x + y, x + y + z):
        toward = np.stack([-0.16 * np.sign(across + 0.5)] * 3)
        at = places_mm(deformation(matrix=matrix, knots=toward), size=32)
        inner = [steps[:31, :31, :31] for steps in (at.diff(dim=2), at.diff(dim=1), at.diff(dim=0))]
        determinant = torch.linalg.det(torch.stack(inner, -1) / (200.0 / 32)) / np.linalg.det(matrix)
        assert 0.2 < determinant.min() < 0.8


def test_draws_lie_in_their_ranges_and_a_setting_moves_no_other() -> None:
    draws = [Augmentation(elastic=0.0, shear=0.0, pose_degrees=0.0).draw(seed) for seed in range(300)]
    sizes = np.array([abs(np.linalg.det(draw.matrix)) ** (1 / 3) for draw in draws])
    assert 1 / 1.1 - 1e-9 <= sizes.min() < 0.93 < 1.07 < sizes.max() <= 1.1 + 1e-9
    assert np.mean([np.linalg.det(draw.matrix) < 0 for draw in draws]) == pytest.approx(0.5, abs=0.09)
    shifts = np.array([draw.shift for draw in draws])
    assert 9.5 < np.abs(shifts).max() <= 10
    cameras = np.array([draw.camera for draw in draws])
    assert 0.97 <= cameras.min() < 0.972
    assert 1.03 >= cameras.max() > 1.028
    one, other = Augmentation().draw(4), Augmentation(rotation=0.0, scale=0.0, elastic=0.16).draw(4)
    np.testing.assert_allclose(one.knots / 0.12, other.knots / 0.16)
    assert (one.shift == other.shift).all()
    assert one.poses == other.poses


def test_an_exchange_of_left_and_right_shows_in_volume_and_frontal_view(tmp_path: Path) -> None:
    """A parallel beam sees the mirrored body as its own mirror image; the lateral view does not change."""
    data = PreparedDataset(written(tmp_path, "parallel"), augment=replace(NOTHING, mirror=1.0))
    batch = batch_of(data)
    new = data.augment(batch)
    torch.testing.assert_close(new["volume"], batch["volume"].flip(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(new["frontal"], batch["frontal"].flip(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(new["lateral"], batch["lateral"], rtol=0, atol=1e-5)


def test_labels_go_along_and_forbid_a_mirror_where_they_say_left_or_right(tmp_path: Path) -> None:
    root = written(tmp_path, "lumbar")
    data = PreparedDataset(root, labels=["ribs", "L1"], augment=Augmentation(elastic=0.0, mirror=1.0))
    batch = batch_of(data)
    new = data.augment(batch)
    assert new["labels"].dtype == batch["labels"].dtype
    assert set(new["labels"].unique().tolist()) == {0, 1, 2}
    assert not torch.equal(new["labels"], batch["labels"])
    for k in (1, 2):  # bone stays bone, and lies no longer where it was
        before, there, here = (
            float(volume[:, 0][labels == k].mean())
            for volume, labels in (
                (batch["volume"], batch["labels"]),
                (new["volume"], batch["labels"]),
                (new["volume"], new["labels"]),
            )
        )
        assert there + 0.05 < here
        assert before - 0.15 < here < before + 0.02
    assert data.augment.ranges.mirror == 1.0
    sided = PreparedDataset(root, labels=["left_clavicle", "ribs"], augment=Augmentation())
    assert sided.augment.ranges == replace(Augmentation(), mirror=0.0)


def test_beyond_the_cube_its_faces_go_on(tmp_path: Path) -> None:
    """A trunk that the crop cut off at both ends still goes through the whole cube, and air stays air."""
    ranges = replace(NOTHING, shift=80.0)
    data = PreparedDataset(written(tmp_path, "lumbar"), augment=ranges)
    batch = batch_of(data, (0, 3))
    assert all(abs(ranges.draw(seed).shift[2]) > SIDE / SIZE for seed in batch["seed"].tolist())
    air = (data.augment(batch)["volume"] < -0.9).float().mean((1, 3, 4))  # of each slice
    assert air.min() > 0.2
    assert air.max() < 0.8
    torch.testing.assert_close(air, air.mean(1, keepdim=True).expand_as(air), rtol=0, atol=0.02)


def test_every_draw_follows_from_seed_step_and_sample_alone(phantoms: Path) -> None:
    """Not from workers, from the parts of a batch, nor from where a resumed run begins; exposures come on top."""
    randomize = XrayRandomization(photons=(1e3, 1e4), probability=1.0)

    def batches(count: int, step: int = 0, augment: bool = True, **settings) -> list[dict]:
        data = PreparedDataset(phantoms, augment=Augmentation() if augment else None, randomize=randomize)
        made = endless_batches(
            data, TrainerSettings(max_steps=9, batch_size=4, seed=3, **settings), step, 0, 1, torch.device("cpu")
        )
        return [next(made) for _ in range(count)]

    whole, resumed, plain = batches(2), batches(1, step=1)[0], batches(1, augment=False)[0]
    workers, parts = batches(2, num_workers=2), batches(4, accumulate=2)
    for key in ("volume", *VIEWS, "camera"):
        assert not torch.equal(whole[0][key], plain[key])
        assert torch.equal(resumed[key], whole[1][key])
        for at in (0, 1):
            assert torch.equal(workers[at][key], whole[at][key])
            both = torch.cat([part[key] for part in parts[2 * at : 2 * at + 2]])
            torch.testing.assert_close(both, whole[at][key], rtol=0, atol=1e-5)
    again = PreparedDataset(phantoms, augment=Augmentation())
    clean = again.augment({key: plain[key] for key in ("volume", *VIEWS, "index", "seed")})
    torch.testing.assert_close(clean["volume"], whole[0]["volume"])
    assert (clean["frontal"] - whole[0]["frontal"]).abs().mean() > 1e-3  # the exposures


def test_only_training_is_augmented_and_only_where_asked(phantoms: Path, compose) -> None:
    assert build.build_dataset(compose().dataset, "train", training=True).augment is None
    cfg = compose("dataset.augment=true").dataset
    assert build.build_dataset(cfg, "train", training=True).augment.ranges == Augmentation()
    assert build.build_dataset(cfg, "train").augment is None
    some = compose("dataset.augment={rotation: 5, cells: 3}").dataset
    assert build.build_dataset(some, "train", training=True).augment.ranges == Augmentation(rotation=5.0, cells=3)
    for given, message in (
        ({"elastic": 0.5}, r"dataset\.augment\.elastic=0\.5: out of range; give a number from 0 to 0\.16"),
        ({"rotate": 5}, r"unknown key 'dataset\.augment\.rotate'; did you mean dataset\.augment\.rotation"),
        ("strong", r"dataset\.augment=strong: give true, or ranges"),
        ({"camera": 0.5}, r"a cube of 256 mm would reach 1\d\d mm far, and the source or panel may stand at -750 mm"),
    ):
        cfg.augment = given
        with pytest.raises(UserError, match=message) as error:
            build.build_dataset(cfg, "train", training=True)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"xrays": "stored"}, "were stored with the scan"),
        ({"projector": None}, "are of projector=None by its case.json"),
        ({"attenuation": "measured"}, "are of attenuation=measured by its case.json"),
    ],
)
def test_xrays_that_are_not_ours_are_refused_in_one_line(tmp_path: Path, entries: dict, fault: str) -> None:
    path = written(tmp_path, "lumbar") / "cases" / "b" / "case.json"
    path.write_text(json.dumps((read_case(tmp_path, "b") or {}) | entries))
    assert PreparedDataset(tmp_path).augment is None
    with pytest.raises(UserError, match=f"those of b {fault}") as error:
        PreparedDataset(tmp_path, augment=Augmentation())
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_gpu_equals_cpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    data = PreparedDataset(written(tmp_path, "lumbar"), labels=["ribs"], augment=Augmentation())
    batch = batch_of(data)
    there, here = data.augment(on_device(batch, "cuda")), data.augment(batch)
    assert there["frontal"].is_cuda
    for key in ("volume", *VIEWS, "camera"):
        torch.testing.assert_close(there[key].cpu(), here[key], rtol=0, atol=5e-3)  # a voxel may round to the next HU
    assert (there["labels"].cpu() == here["labels"]).float().mean() > 0.99
