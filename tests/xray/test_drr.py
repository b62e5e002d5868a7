import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.intensity import attenuation_from_hu
from diffux2ct.xray.attenuation import TwoMaterialAttenuation, WaterAttenuation
from diffux2ct.xray.camera import camera_preset
from diffux2ct.xray.drr import OUTPUTS, PROJECTORS, decode_output, encode_output, render_pair, render_view
from diffux2ct.xray.joseph import project
from diffux2ct.xray.pose import Pose

VIEWS = ("frontal", "lateral")


def tissue(size=32):
    """HU from -1000 at the border to bone inside, smooth and unlike along the three axes."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    bump = np.exp(-3 * (z**2 + 1.5 * (y - 0.1) ** 2 + 2 * (x + 0.2) ** 2))
    return torch.from_numpy((2200 * bump * (1 - z**2) * (1 - y**2) * (1 - x**2) - 1000).round()).float()


@pytest.mark.parametrize("name", ["lumbar", "x2ct", "parallel"])
def test_a_pair_has_the_asked_size_and_the_kind_of_its_input(name):
    hu, camera = tissue(), camera_preset(name, 32, 8.0)
    tensors = render_pair(hu, 8.0, camera, 32)
    arrays = render_pair(hu.numpy().astype(np.int16), (8.0, 8.0, 8.0), camera, 32)
    for view in VIEWS:
        assert tensors[view].shape == (32, 32)
        assert arrays[view].dtype == np.float32
        np.testing.assert_allclose(arrays[view], tensors[view].numpy(), rtol=1e-6)
        panel = project(attenuation_from_hu(hu)[None, None], 8.0, camera, view)
        torch.testing.assert_close(tensors[view].mean(), panel.mean(), rtol=5e-3, atol=0)  # resized, not rescaled


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("attenuation", ["plastimatch", "water", "two_material"])
def test_every_projector_shows_every_material_about_the_same(projector, attenuation):
    hu, camera = tissue(), camera_preset("lumbar", 32, 8.0)
    pair = render_pair(hu, 8.0, camera, 32, projector=projector, attenuation=attenuation)
    joseph = render_pair(hu, 8.0, camera, 32, attenuation=attenuation)
    for view in VIEWS:
        gap = (pair[view] - joseph[view]).abs().mean() / joseph[view].mean()
        assert gap < (0.05 if projector == "siddon" else 0.005)  # 8 mm voxels: boxes or interpolated
        assert (gap == 0) == (projector == "joseph")


def test_models_with_settings_of_their_own():
    hu, camera = tissue()[None, None], camera_preset("lumbar", 32, 8.0)
    soft, hard = (
        render_view(hu, 8.0, camera, "frontal", attenuation=TwoMaterialAttenuation(kvp=kvp)) for kvp in (80, 120)
    )
    assert soft.max() > 1.1 * hard.max()
    one, two = (render_view(hu, 8.0, camera, "frontal", attenuation=WaterAttenuation(kev)) for kev in (60.0, 80.0))
    torch.testing.assert_close(one / one.max(), two / two.max())
    assert float(one.max() / two.max()) == pytest.approx(0.2059 / 0.1837)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_a_pose_moves_the_image_as_it_moves_the_patient(projector):
    hu, camera = tissue(), camera_preset("parallel", 32, 4.0)
    # A marcher's samples fall elsewhere in the voxels once the patient moves.
    tolerance = 2e-3 if projector == "trilinear" else 1e-4
    still = render_pair(hu, 4.0, camera, 32, projector=projector)
    assert still["frontal"].max() > 1
    shifted = render_pair(hu, 4.0, camera, 32, projector=projector, jitter=Pose((0, 0, 0), (8.0, 0.0, -4.0)))
    torch.testing.assert_close(shifted["frontal"][:-1, 2:], still["frontal"][1:, :-2], rtol=0, atol=tolerance)
    torch.testing.assert_close(shifted["lateral"][:-1], still["lateral"][1:], rtol=0, atol=tolerance)
    turned = render_pair(hu, 4.0, camera, 32, projector=projector, jitter={"frontal": Pose((0, 0, 90))})
    # The patient's right side comes to face the frontal source: its columns run as the lateral's, reversed.
    torch.testing.assert_close(turned["frontal"], still["lateral"].flip(1), rtol=0, atol=tolerance)
    torch.testing.assert_close(turned["lateral"], still["lateral"], rtol=0, atol=1e-6)


def test_a_batch_of_volumes_and_its_gradient():
    hu = torch.stack([tissue(16), tissue(16) + 200])[:, None].requires_grad_()
    camera = camera_preset("lumbar", 16, 16.0)
    images = render_view(
        hu, 16.0, camera, "lateral", projector="siddon", attenuation="two_material", pose=Pose((0, 0, 5))
    )
    assert images.shape == (2, 1, 16, 16)
    assert (images[1] > images[0]).float().mean() > 0.5
    images.sum().backward()
    assert hu.grad is not None
    assert (hu.grad > 0).float().mean() > 0.3


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_every_output_can_be_undone(output, kind):
    pair = render_pair(tissue(), 8.0, camera_preset("lumbar", 32, 8.0), 32)
    integrals = pair["frontal"] if kind == "tensor" else pair["frontal"].numpy()
    image, scale = encode_output(integrals, output)
    assert type(image) is type(integrals)
    if output == "max":
        assert scale == pytest.approx(float(integrals.max()))
        assert float(image.max()) == pytest.approx(1.0)
    else:
        assert scale == 1.0
    if output == "transmission":
        assert 0 < float(image.min()) < 0.5 < float(image.max()) <= 1.0
    np.testing.assert_allclose(decode_output(image, output, scale), integrals, rtol=1e-5, atol=1e-6)


def test_outputs_of_nothing_and_of_darkness():
    nothing, scale = encode_output(np.zeros((4, 4), np.float32), "max")
    assert scale == 1.0
    assert not nothing.any()
    dark = decode_output(np.zeros((2, 2), np.float32), "transmission")
    np.testing.assert_allclose(dark, 87.34, atol=0.01)  # -log of the smallest float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda hu, camera: render_pair(hu, 8.0, camera, 32, projector="fast"), "use joseph, siddon, trilinear"),
        (lambda hu, camera: render_pair(hu, 8.0, camera, 32, attenuation="lead"), "use plastimatch, water"),
        (lambda hu, camera: encode_output(hu, "log"), "use line_integral, transmission, max"),
        (lambda hu, camera: decode_output(hu, "log"), "use line_integral, transmission, max"),
        (lambda hu, camera: decode_output(hu, "max", 0.0), "must be positive"),
        (
            lambda hu, camera: render_pair(hu, 8.0, camera, 32, jitter=Pose((0, 0, 0), (0, 400, 0))),
            "crop it or move the camera",
        ),
    ],
)
def test_faults_are_told_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call(tissue(), camera_preset("lumbar", 32, 8.0))
    assert "\n" not in str(error.value)
