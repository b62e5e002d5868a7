import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch.testing import assert_close

from diffux2ct.evaluation.fidelity.ssim import ms_ssim3d, scale_weights

WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]


def pair(seed, shape, noise=0.1, batch=1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand((batch, *shape), generator=generator, dtype=torch.float64)
    other = target + noise * torch.randn(target.shape, generator=generator, dtype=torch.float64)
    return other.clamp(0, 1), target


def by_the_paper(a, b, num_scales):
    """Wang et al. 2003, Eq. 7 with Eqs. 1-3, on numpy arrays: x and y, five moments, scipy's filter, cropped."""
    weights = np.array(WEIGHTS[:num_scales]) / sum(WEIGHTS[:num_scales])
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        for axis in range(3):
            x = correlate1d(x, window, axis=axis)
        return x[5:-5, 5:-5, 5:-5]

    result = 1.0
    for scale in range(num_scales):
        mx, my = mean(a), mean(b)
        vx, vy, vxy = mean(a * a) - mx * mx, mean(b * b) - my * my, mean(a * b) - mx * my
        term = (2 * vxy + 0.03**2) / (vx + vy + 0.03**2)
        if scale == num_scales - 1:
            term = term * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        result *= np.mean(term) ** weights[scale]
        d, h, w = (side // 2 for side in a.shape)
        a, b = (x[: 2 * d, : 2 * h, : 2 * w].reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5)) for x in (a, b))
    return result


@pytest.mark.parametrize(
    ("shape", "num_scales"), [((16, 20, 18), 1), ((32, 24, 23), 2), ((44, 47, 46), 3), ((96, 88, 90), 4)]
)
def test_value_is_that_of_the_papers_formula(shape, num_scales):
    a, b = pair(num_scales, shape)
    value = ms_ssim3d(a, b)
    assert_close(value[0].item(), by_the_paper(a[0].numpy(), b[0].numpy(), num_scales), rtol=0, atol=1e-9)
    assert 0.3 < value < 0.999


def test_weights_are_the_papers_where_five_scales_fit_and_sum_to_one_elsewhere():
    assert_close(scale_weights((176, 180, 200)), tuple(w / sum(WEIGHTS) for w in WEIGHTS), rtol=0, atol=1e-12)
    assert [len(scale_weights((n, 300, 300))) for n in (175, 128, 64, 32, 16, 8)] == [4, 4, 3, 2, 1, 1]
    for side in (8, 32, 100, 300):
        assert_close(sum(scale_weights((side,) * 3)), 1.0, rtol=0, atol=1e-12)


def test_coarse_structure_counts_so_that_noise_costs_less_than_with_one_scale():
    z, y, x = torch.meshgrid(*[torch.linspace(0, 6, 48, dtype=torch.float64)] * 3, indexing="ij")
    smooth = (0.5 + 0.2 * (z.sin() + y.cos() * x.sin()))[None]
    noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    cropped = (slice(None), *[slice(0, 16)] * 3)
    assert ms_ssim3d(noisy, smooth) > ms_ssim3d(noisy[cropped], smooth[cropped]) + 0.1


def test_every_volume_of_a_batch_is_scored_on_its_own():
    a, b = pair(5, (24, 26, 22), batch=3)
    together = ms_ssim3d(a, b)
    alone = torch.cat([ms_ssim3d(a[k : k + 1], b[k : k + 1]) for k in range(3)])
    assert_close(together, alone, rtol=0, atol=1e-12)
    assert len(set(together.tolist())) == 3


def test_equal_volumes_score_one_and_opposite_ones_nothing():
    a, _ = pair(6, (32, 32, 32))
    assert ms_ssim3d(a, a).item() == 1.0
    assert ms_ssim3d(a, 1 - a).item() == 0.0


def test_data_range_only_sets_the_scale():
    a, b = pair(7, (24, 24, 24))
    assert_close(ms_ssim3d(2500 * a, 2500 * b, data_range=2500.0), ms_ssim3d(a, b), rtol=1e-9, atol=0)


def test_window_shrinks_below_eleven_voxels():
    a, b = pair(8, (6, 9, 9))
    assert 0 < ms_ssim3d(a, b).item() < 1
    with pytest.raises(ValueError, match="at least 3 voxels"):
        ms_ssim3d(*pair(8, (2, 9, 9)))
