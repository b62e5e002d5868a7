import pytest
import torch

from diffux2ct.models.baselines.icm_reg import FeatureDecoder3d, IcmReg
from diffux2ct.models.conditioning import ExpandConditioning, ImplicitConditioning

WIDTHS = {"plane_channels": 8, "encoder_channels": (8, 8, 16, 16), "num_blocks": 1}


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_paper_s_size():
    with torch.device("meta"):
        assert count(FeatureDecoder3d((32, 64, 128, 128))) == 2_767_777
        network = IcmReg(ImplicitConditioning(128, channels=(32, 64, 128, 128)))
    assert count(network) == pytest.approx(10.27e6, rel=0.02)


@pytest.mark.parametrize("kind", ["implicit", "expand"])
def test_any_conditioning_gives_a_volume_in_which_both_xrays_matter(kind):
    torch.manual_seed(0)
    widths = WIDTHS | {"channels": (8, 8, 8, 8)}
    conditioning = ImplicitConditioning(16, **widths) if kind == "implicit" else ExpandConditioning(**widths)
    network = IcmReg(conditioning).eval()
    xrays = {view: torch.rand(2, 1, 16, 16) for view in ("frontal", "lateral")}
    base = network(xrays)
    assert base.shape == (2, 1, 16, 16, 16)
    for view in xrays:
        assert (network(xrays | {view: torch.rand(2, 1, 16, 16)}) - base).abs().max() > 1e-3


def test_a_bright_point_of_a_finest_feature_lands_on_its_voxel():
    decoder = FeatureDecoder3d((4, 4))
    fine, coarse = torch.zeros(1, 4, 8, 8, 8), torch.zeros(1, 4, 4, 4, 4)
    base = decoder([fine, coarse])
    fine[0, :, 2, 5, 6] = 10.0
    change = (decoder([fine, coarse]) - base).abs()[0, 0]
    reach = torch.nonzero(change > 0.2 * change.max()).float()
    # Three 3-wide convolutions reach three voxels; group norm spreads a little everywhere, and much less.
    assert (reach - torch.tensor([2.0, 5.0, 6.0])).abs().max() <= 3
