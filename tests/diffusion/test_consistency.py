from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffux2ct.data.io.camera_file import CameraFile
from diffux2ct.data.prepared.augment import Acquisition
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.diffusion.consistency import Consistency
from diffux2ct.errors import UserError
from diffux2ct.intensity import HU_WINDOW, XRAY_SCALE, denormalize_hu, normalize_hu, normalize_xray
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import render_view
from diffux2ct.xray.pose import Pose

SIZE = 16


@pytest.fixture
def cases(phantoms):
    return PreparedDataset(phantoms, "test", xray_normalization="fixed")


def given(cases) -> dict[str, torch.Tensor]:
    return {view: torch.stack([cases[index][view] for index in range(2)]) for view in VIEWS}


def truth(cases) -> torch.Tensor:
    return torch.stack([cases[index]["volume"] for index in range(2)])


def wrong(volume: torch.Tensor) -> torch.Tensor:
    """A smooth error of some 50 HU, and one along the rays of neither view."""
    z, y, x = torch.meshgrid(*[torch.linspace(-2, 2, SIZE)] * 3, indexing="ij")
    return (volume + 0.05 * torch.sin(3 * x + y) * torch.cos(2 * z)).clamp(-1, 1)


def residual(cases, volume: torch.Tensor) -> float:
    """Mean absolute difference of line integrals."""
    errors = []
    for index in range(2):
        images = cases.acquisition(index, "test").render(denormalize_hu(volume[index, 0], cases.window), False)
        errors += [normalize_xray(images[view], "fixed") - cases[index][view][0] for view in VIEWS]
    return float(torch.stack(errors).abs().mean()) * 4


def corrected(cases, volume, steps: int, mismatch=None) -> torch.Tensor:
    return Consistency(steps, mismatch).for_cases(cases, [0, 1], given(cases))(volume)


def test_each_step_lowers_the_residual_and_the_error_and_leaves_air_alone(cases):
    start, true = wrong(truth(cases)), truth(cases)
    volumes = [start, *[corrected(cases, start, steps) for steps in (1, 2, 3, 8)]]
    residuals = [residual(cases, volume) for volume in volumes]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[1] < 0.6 * residuals[0]
    assert residuals[-1] < 0.15 * residuals[0]
    errors = [float((volume - true).square().mean()) for volume in volumes]
    assert errors[3] < errors[1] < errors[0]
    air = denormalize_hu(start, cases.window) <= -800
    assert air.any()
    for volume in volumes[1:]:
        assert torch.equal(volume[air], start[air])
        assert volume.abs().max() <= 1


def test_a_consistent_volume_stays(cases):
    true = truth(cases)
    torch.testing.assert_close(
        corrected(cases, true, 5), true, rtol=0, atol=0.01
    )  # voxels of -800 HU may round to matter


def test_a_step_is_that_of_the_dense_matrix():
    """x + (g g / |A g|^2) g with g = A^T (y - A x), where each voxel is matter."""
    how = Acquisition(camera_preset("lumbar", 8, 20.0), "joseph", "water", dict.fromkeys(VIEWS, Pose()), 20.0)
    generator = torch.Generator().manual_seed(0)
    start, goal = (normalize_hu(torch.rand(8, 8, 8, generator=generator) * 400 - 200) for _ in range(2))

    def images(x: torch.Tensor) -> torch.Tensor:
        """Line integrals [B, 128] in units of the X-rays."""
        hu = denormalize_hu(x.view(-1, 1, 8, 8, 8))
        shown = [render_view(hu, 20.0, how.camera, view, attenuation="water") for view in VIEWS]
        return torch.cat([image.flatten(1) for image in shown], 1).double() * (2 / XRAY_SCALE)

    matrix = ((images(start + 0.1 * torch.eye(512).view(-1, 8, 8, 8)) - images(start)) / 0.1).T
    down = matrix.T @ (images(goal) - images(start))[0]
    step = down.square().sum() / (matrix @ down).square().sum()
    expected = start.double() + step * down.view(8, 8, 8)

    xrays = dict(zip(VIEWS, (images(goal).float() - 1).view(2, 1, 1, 8, 8), strict=True))
    correct = Consistency(1).bound([how], xrays, "fixed", HU_WINDOW, False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        made = correct(start[None, None])[0, 0]
    assert made.dtype == torch.float32
    assert (expected - start).abs().max() > 0.02
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=1e-4)

    # Where attenuation does not end at -800 HU either, air stays.
    start[:, :, :3] = normalize_hu(torch.tensor(-900.0))
    made = correct(start[None, None])[0, 0]
    assert torch.equal(made[:, :, :3], start[:, :, :3])
    assert (made[:, :, 3:] != start[:, :, 3:]).all()


@pytest.mark.parametrize("mismatch", ["siddon", 8.0])
def test_a_mismatched_projector_is_less_consistent(cases, mismatch):
    start = wrong(truth(cases))
    right, other = (corrected(cases, start, 8, control) for control in (None, mismatch))
    assert residual(cases, other) > 1.5 * residual(cases, right)
    assert not torch.equal(other, start)


def test_the_projector_of_the_xrays_is_no_control(cases):
    with pytest.raises(UserError, match="consistency_mismatch=joseph: the projector of these X-rays"):
        corrected(cases, truth(cases), 1, "joseph")


def test_settings_name_their_control():
    assert Consistency.wanted(None) is Consistency.wanted(0, "siddon") is None
    assert Consistency.wanted(3) == Consistency(3)
    assert (str(Consistency(3)), str(Consistency(3, "siddon"))) == ("3", "3-siddon")
    assert Consistency(3).record() == {"consistency": 3}
    assert Consistency(3, 4.0).record() == {"consistency": 3, "consistency_mismatch": 4.0}


def test_xrays_without_absolute_values_or_a_known_camera_are_refused(phantoms, cases):
    relative = PreparedDataset(phantoms, "test")
    with pytest.raises(UserError, match="consistency=3: .*xray_normalization=max .*xray_normalization=fixed"):
        Consistency(3).for_cases(relative, [0, 1], given(relative))
    with pytest.raises(UserError, match=r"consistency=3: the camera .* unknown; .*camera\.json"):
        Consistency(3).for_files({}, given(cases), "fixed", HU_WINDOW, SIZE, 16.0)
    file = CameraFile(
        Path("camera.json"), "frontal", "lumbar", {}, "line_integral", SIZE, (16.0,) * 3, (0.0,) * 3, False, "x", {}
    )
    both = {view: replace(file, view=view) for view in VIEWS}
    exposed = {view: replace(known, record={"effects": {"gamma": 0.5}}) for view, known in both.items()}
    with pytest.raises(UserError, match=r"camera\.json: its X-rays have effects .*consistency=3"):
        Consistency(3).for_files(exposed, given(cases), "fixed", HU_WINDOW, SIZE, 16.0)
    with pytest.raises(UserError, match=r"camera\.json: does not say how .*consistency=3"):
        Consistency(3).for_files(both, given(cases), "fixed", HU_WINDOW, SIZE, 16.0)
