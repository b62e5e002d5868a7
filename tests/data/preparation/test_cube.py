import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.data.io.ct_image import CtImage
from diffux2ct.data.preparation.cube import cut_cube, filled_share, random_centres


def scan(spacing=(0.8, 0.9, 2.5), shape=(30, 90, 100)) -> CtImage:
    z, y, x = np.indices(shape)
    hu = np.full(shape, -1000.0)
    hu[((y - 45) / 36) ** 2 + ((x - 50) / 40) ** 2 < 1] = 40
    hu[((y - 60) / 9) ** 2 + ((x - 50) / 11) ** 2 < 1] = 700
    hu += 3 * z + np.random.default_rng(0).normal(0, 20, shape)
    return CtImage(hu.clip(-1024).round().astype(np.int16), spacing, (12.0, -40.0, 300.0))


def filtered(ct: CtImage, spacing: float) -> sitk.Image:
    """All of a scan through ITK's recursive Gaussian, along the axes that ``spacing`` mm makes coarser."""
    image = sitk.Cast(sitk.GetImageFromArray(ct.hu), sitk.sitkFloat32)
    image.SetSpacing(ct.spacing)
    image.SetOrigin(ct.origin)
    for axis, old in enumerate(ct.spacing):
        width = np.sqrt(max(spacing**2 - old**2, 0.0)) / np.sqrt(8 * np.log(2))
        if width > 0.1 * old:
            image = sitk.RecursiveGaussian(image, sigma=width, direction=axis)
    # The filter overshoots by a few HU beside a sharp edge.
    return sitk.Clamp(image, sitk.sitkFloat32, float(ct.hu.min()))


def sampled(image: sitk.Image, spacing: float, origin: list[float]) -> np.ndarray:
    """ITK's linear samples on 24^3 voxels; -1024 outside."""
    grid = {"size": [24] * 3, "outputOrigin": origin, "outputSpacing": [spacing] * 3}
    return sitk.GetArrayFromImage(sitk.Resample(image, **grid, defaultPixelValue=-1024))


@pytest.mark.parametrize("spacing", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("shift", [(0, 0, 0), (9.3, -7.1, 11.0), (500, 0, 0)])
def test_the_same_as_filtering_all_and_sampling(spacing: float, shift) -> None:
    ct = scan()
    centre = np.array(ct.centre) + shift
    cube = cut_cube(ct, 24, spacing, centre)
    origin = (centre - 23 / 2 * spacing).tolist()
    expected = sampled(filtered(ct, spacing), spacing, origin)
    assert cube.dtype == np.float32
    np.testing.assert_array_equal(cube == -1024, expected == -1024)
    # ITK's filter is recursive: it comes within a few HU of a Gaussian, and mirrors where a scan ends.
    difference = np.abs(cube - expected)
    assert difference.mean() < 1.5
    assert difference[2:-2, 2:-2, 2:-2].max() < 25


def test_without_a_coarser_axis_it_is_linear_interpolation() -> None:
    ct = scan((4.0, 4.0, 4.0), (20, 24, 28))
    centre = np.add(ct.centre, (1.7, -2.2, 0.4))
    origin = (centre - 23 / 2 * 2.0).tolist()
    expected = sampled(filtered(ct, 2.0), 2.0, origin)
    np.testing.assert_allclose(cut_cube(ct, 24, 2.0, centre), expected, atol=1e-2)


def test_a_ramp_stays_a_ramp() -> None:
    z, y, x = np.indices((40, 80, 80))
    ct = CtImage((2 * z + 5 * y - 3 * x).astype(np.int16), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0))
    cube = cut_cube(ct, 9, 4.0, np.array(ct.centre))
    k = (np.arange(9) - 4) * 4.0
    expected = 2 * k[:, None, None] / 3 + 5 * k[:, None] - 3 * k + (2 * 19.5 + 2 * 39.5)
    np.testing.assert_allclose(cube, expected, atol=1e-2)


def test_a_checkerboard_becomes_grey() -> None:
    board = (np.indices((48, 48, 48)).sum(axis=0) % 2 * 1000.0 - 500.0).astype(np.float32)
    # 3 mm from 1 mm voxels: every sample hits a voxel's centre, so without a low-pass the board survives whole.
    assert board[1::3, 1::3, 1::3].std() == pytest.approx(500.0)
    ct = CtImage(board, (1.0,) * 3, (0.0,) * 3)
    assert cut_cube(ct, 16, 3.0, np.array(ct.centre))[3:-3, 3:-3, 3:-3].std() < 1.0


def test_low_pass_acts_only_along_axes_that_become_coarser() -> None:
    noise = np.random.default_rng(0).normal(size=(24, 96, 96)).astype(np.float32)
    ct = CtImage(noise, (1.0, 1.0, 4.0), (0.0,) * 3)
    cube = cut_cube(ct, 24, 4.0, np.array(ct.centre))
    assert cube.std() < 0.3 * noise.std()
    np.testing.assert_allclose(cube.mean(), noise.mean(), atol=0.02)
    along_z = CtImage(np.broadcast_to(noise[:, :1, :1], noise.shape).copy(), ct.spacing, ct.origin)
    np.testing.assert_allclose(cut_cube(along_z, 24, 4.0, np.array(ct.centre)), along_z.hu[:, ::4, ::4], atol=1e-3)


def test_every_voxel_keeps_its_place_and_air_lies_around() -> None:
    hu = np.arange(6 * 8 * 11, dtype=np.int16).reshape(6, 8, 11)
    ct = CtImage(hu, (2.0, 2.0, 2.0), (-7.0, 3.0, 100.0))
    cube = cut_cube(ct, 8, 2.0, np.array(ct.centre) - (1, 0, 0))
    # z: 6 -> 8 pads one slice below and above; y as it is; x: 11 -> 8 cuts.
    assert (cube[[0, -1]] == -1024).all()
    np.testing.assert_array_equal(cube[1:7], hu[:, :, 1:9])
    aside = cut_cube(ct, 3, 2.0, np.array((-7.0, 3.0, 100.0)))
    assert aside[1, 1, 1] == hu[0, 0, 0]
    assert aside[0, 0, 0] == -1024
    assert (cut_cube(ct, 4, 2.0, np.array((1000.0, 0.0, 0.0))) == -1024).all()


def test_random_crops_keep_half_of_the_central_body() -> None:
    # A thin patient in a wide field: most places hold no body.
    hu = np.full((40, 160, 160), -1000, np.int16)
    hu[:, 70:90, 65:95] = 40
    ct = CtImage(hu, (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    centres = random_centres(ct, 128.0, 40, "p", 0)
    central = (cut_cube(ct, 32, 4.0, np.array(ct.centre)) > -500).mean()
    shares = [(cut_cube(ct, 32, 4.0, centre) > -500).mean() for centre in centres]
    assert min(shares) > 0.45 * central  # whole voxels are counted
    # The draws depend on neither their number nor on what was refused for others.
    np.testing.assert_array_equal(random_centres(ct, 128.0, 5, "p", 0), centres[:5])
    assert len({tuple(centre) for centre in centres}) == 40
    # Where nothing is refused, the first draws hold.
    full = CtImage(np.full((40, 160, 160), 40, np.int16), ct.spacing, ct.origin)
    reach = (np.array(full.extent) - 128) / 2
    seed = [0, zlib.crc32(b"p")]
    expected = np.array(full.centre) + np.random.default_rng(seed).uniform(-1, 1, (7, 3)) * reach
    np.testing.assert_allclose(random_centres(full, 128.0, 7, "p", 0), expected)


def test_the_share_of_a_cube_that_the_scan_fills() -> None:
    slab = CtImage(np.zeros((20, 256, 256), np.int16), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    middle = np.array(slab.centre)
    assert filled_share(slab, 256.0, middle) == pytest.approx(40 / 256)
    assert filled_share(slab, 256.0, middle + np.array((0, 64, 0))) == pytest.approx(40 / 256 * 0.75)
    assert filled_share(slab, 40.0, middle + np.array((100, 0, -10))) == pytest.approx(0.75)
    assert filled_share(slab, 40.0, middle + np.array((500, 0, 0))) == 0.0
