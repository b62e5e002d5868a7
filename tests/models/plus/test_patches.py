import pytest
import torch
from torch import nn

from diffux2ct.errors import UserError
from diffux2ct.models.plus.patches import PatchUNet3d, from_patches, places, to_patches


def test_patches_hold_the_voxels_of_two_a_side_and_come_back():
    volume = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    patches = to_patches(volume)
    assert patches.shape == (2, 24, 2, 3, 4)
    assert torch.equal(patches[1, 8:16, 1, 2, 3], volume[1, 1, 2:4, 4:6, 6:8].flatten())
    assert torch.equal(from_patches(patches), volume)


def test_places_run_from_minus_one_to_one_along_z_y_x():
    z, y, x = places(torch.zeros(1, 1, 3, 2, 5))[0]
    assert z[:, 0, 0].tolist() == [-1, 0, 1]
    assert y[0, :, 0].tolist() == [-1, 1]
    assert x[2, 1].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert (z[0] == -1).all()


def unet(**settings) -> PatchUNet3d:
    torch.manual_seed(0)
    return PatchUNet3d((8, 16), (4, 8, 8), num_heads=2, window_size=4, **settings).eval()


def features(size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, c, *[size // 2**i] * 3, generator=generator) for i, c in enumerate((4, 8, 8))]


def test_an_untrained_network_predicts_zero_and_each_input_reaches_the_result():
    model, h, x = unet(), features(), torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(model(x, torch.zeros(2), h), torch.zeros(2, 1, 16, 16, 16))
    nn.init.normal_(model.unet.out.weight, std=0.1)
    with torch.no_grad():
        first = model(x, torch.zeros(2), h)
        for changed in ((x + 1, h), *((x, [g + (i == k) for k, g in enumerate(h)]) for i in range(3))):
            assert (model(changed[0], torch.zeros(2), changed[1]) - first).abs().max() > 1e-3
        assert (model(x, torch.full((2,), 500.0), h) - first).abs().max() > 1e-4


def test_the_finest_condition_is_added_at_full_size():
    model, h, x = unet(), features(), torch.zeros(2, 1, 16, 16, 16)
    nn.init.normal_(model.fine.weight)
    with torch.no_grad():
        expected = nn.functional.conv3d(h[0], model.fine.weight, padding=1)
        torch.testing.assert_close(model(x, torch.zeros(2), h), expected, rtol=1e-4, atol=1e-4)


def test_coordinates_tell_places_apart():
    h = [torch.zeros_like(g) for g in features()]
    spreads = []
    for coordinates in (True, False):
        model = unet(coordinates=coordinates)
        nn.init.normal_(model.unet.out.weight, std=0.1)
        with torch.no_grad():
            result = model(torch.zeros(2, 1, 16, 16, 16), torch.zeros(2), h)
        spreads.append(float((result[0, 0, 4:8, 8, 8] - result[0, 0, 8:12, 8, 8]).abs().max()))
    assert spreads[0] > 1.5 * spreads[1]


@pytest.mark.parametrize("shape", [(15, 15, 15), (14, 15, 14), (14, 14, 15)])
def test_odd_sides_get_one_line(shape):
    with pytest.raises(UserError, match="dataset.size=15: choose a size divisible by 2"):
        unet()(torch.zeros(1, 1, *shape), torch.zeros(1), [torch.zeros(1, 4, *shape)])
