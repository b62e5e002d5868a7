import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.models.plus.lifting import LiftedConditioning
from diffux2ct.xray.camera import camera_preset

THIN = {"plane_channels": 8, "encoder_channels": (8, 8, 8), "num_blocks": 1}
CONE = torch.tensor([camera_preset("x2ct", 16, 20.0).panel_map(320.0)])


PARALLEL = torch.tensor([camera_preset("parallel", 16, 20.0).panel_map(320.0)])


def xrays(camera: torch.Tensor = PARALLEL) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = {view: torch.randn(1, 1, 16, 16, generator=generator) for view in ("frontal", "lateral")}
    return images | {"camera": camera}


@pytest.mark.parametrize("ways", [{}, {"along": False}, {"depth": False}])
def test_every_scale_has_its_channels_and_sides(ways):
    features = LiftedConditioning(16, (8, 12, 4), **THIN, **ways)(xrays(camera=CONE))
    assert [tuple(h.shape) for h in features] == [(1, 8, 16, 16, 16), (1, 12, 8, 8, 8), (1, 4, 4, 4, 4)]


def test_without_depth_a_ray_s_features_are_constant_and_with_it_they_are_not():
    along = LiftedConditioning(16, (4, 4, 4), **THIN, depth=False)(xrays())[0]
    # The first half of the channels is the frontal view's, whose parallel rays follow y; the second the lateral's.
    assert along[:, :2].std(dim=3).max() < 1e-6 < along[:, :2].std(dim=2).min()
    assert along[:, 2:].std(dim=4).max() < 1e-6
    deep = LiftedConditioning(16, (4, 4, 4), **THIN, along=False)(xrays())[0]
    assert deep[:, :2].std(dim=3).min() > 1e-6


def test_the_camera_counts_unless_it_is_turned_off():
    torch.manual_seed(0)
    lifting = LiftedConditioning(16, (8, 8, 8), **THIN)
    cone, parallel = lifting(xrays(camera=CONE))[0], lifting(xrays())[0]
    assert (cone - parallel).abs().max() > 0.05
    lifting.cone = False
    without = {view: image for view, image in xrays().items() if view != "camera"}
    assert torch.equal(lifting(xrays(camera=CONE))[0], parallel)
    assert torch.equal(lifting(without)[0], parallel)
    lifting.cone = True
    with pytest.raises(UserError, match="no 'camera'"):
        lifting(without)  # never taken for parallel in silence


def test_settings_that_do_not_fit_are_refused_in_one_line():
    for settings, words in (
        ({"size": 18}, "dataset.size=18"),
        ({"along": False, "depth": False}, "leave one of them on"),
        ({"channels": (8, 8, 6)}, "multiples of 4"),
        ({"channels": (8, 8, 8, 8)}, "at most 3"),
    ):
        with pytest.raises(UserError, match=words):
            LiftedConditioning(**{"size": 16, "channels": (8, 8, 8), **THIN, **settings})


def test_each_view_has_its_channels_and_is_lifted_along_its_own_rays():
    torch.manual_seed(0)
    lifting = LiftedConditioning(16, (6, 4, 4), **THIN, depth=False, xray=True, views=(45, 0, 90))
    assert lifting.channels == (9, 6, 6)
    assert lifting.takes == ("angle_45", "frontal", "lateral")
    seen = xrays() | {"angle_45": torch.randn(1, 1, 16, 16)}
    finest, *coarser = lifting(seen)
    assert [tuple(h.shape[1:3]) for h in (finest, *coarser)] == [(9, 16), (6, 8), (6, 4)]
    # Two learned channels a view, then each X-ray; along a ray they are constant.
    for channels, axis in (((2, 3, 7), 3), ((4, 5, 8), 4)):
        assert finest[:, channels].std(dim=axis).max() < 1e-6
    diagonal = torch.stack([finest[:, [0, 1, 6], :, k, k] for k in range(5, 11)])
    anti = torch.stack([finest[:, [0, 1, 6], :, k, 15 - k] for k in range(5, 11)])
    assert diagonal.std(dim=0).max() < 1e-5 < anti.std(dim=0).min()
    with pytest.raises(UserError, match="no angle_45, which this model lifts"):
        lifting(xrays())
