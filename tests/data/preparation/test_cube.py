import numpy as np
import pytest

from diffux2ct.data.io.ct_image import CtImage
from diffux2ct.data.io.volume import blur_for, sample_grid
from diffux2ct.data.preparation.cube import cut_cube


def scan(spacing=(0.8, 0.9, 2.5), shape=(30, 90, 100)) -> CtImage:
    z, y, x = np.indices(shape)
    hu = np.full(shape, -1000.0)
    hu[((y - 45) / 36) ** 2 + ((x - 50) / 40) ** 2 < 1] = 40
    hu[((y - 60) / 9) ** 2 + ((x - 50) / 11) ** 2 < 1] = 700
    hu += 3 * z + np.random.default_rng(0).normal(0, 20, shape)
    return CtImage(hu.clip(-1024).round().astype(np.int16), spacing, (12.0, -40.0, 300.0))


@pytest.mark.parametrize("spacing", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("shift", [(0, 0, 0), (9.3, -7.1, 11.0), (500, 0, 0)])
def test_the_same_as_filtering_all_and_sampling(spacing: float, shift) -> None:
    ct = scan()
    centre = np.array(ct.centre) + shift
    cube = cut_cube(ct, 24, spacing, centre)
    origin = (centre - 23 / 2 * spacing).tolist()
    expected = sample_grid(blur_for(ct, spacing), spacing, (24,) * 3, origin).hu
    assert cube.dtype == np.float32
    np.testing.assert_array_equal(cube == -1024, expected == -1024)
    # blur_for's filter is recursive: it comes within a few HU of a Gaussian, and mirrors where a scan ends.
    difference = np.abs(cube - expected)
    assert difference.mean() < 1.5
    assert difference[2:-2, 2:-2, 2:-2].max() < 25


def test_without_a_coarser_axis_it_is_linear_interpolation() -> None:
    ct = scan((4.0, 4.0, 4.0), (20, 24, 28))
    centre = np.add(ct.centre, (1.7, -2.2, 0.4))
    origin = (centre - 23 / 2 * 2.0).tolist()
    expected = sample_grid(ct, 2.0, (24,) * 3, origin).hu
    np.testing.assert_allclose(cut_cube(ct, 24, 2.0, centre), expected, atol=1e-2)


def test_a_ramp_stays_a_ramp() -> None:
    z, y, x = np.indices((40, 80, 80))
    ct = CtImage((2 * z + 5 * y - 3 * x).astype(np.int16), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0))
    cube = cut_cube(ct, 9, 4.0, np.array(ct.centre))
    k = (np.arange(9) - 4) * 4.0
    expected = 2 * k[:, None, None] / 3 + 5 * k[:, None] - 3 * k + (2 * 19.5 + 2 * 39.5)
    np.testing.assert_allclose(cube, expected, atol=1e-2)
