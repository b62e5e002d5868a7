"""Values are judged without their padding; a volume of our own is not judged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from diffux2ct.data.io.volume import read_ct, read_own_ct, write_nifti
from diffux2ct.errors import UserError

Z, Y, X = np.meshgrid(*[np.linspace(-1, 1, n) for n in (12, 40, 44)], indexing="ij")
CORNERS = X**2 + Y**2 > 1.1


def patient() -> np.ndarray:
    """HU [12, 40, 44] with noise: water, fat and a bone in air."""
    hu = np.where(X**2 + Y**2 < 0.7, 0.0, -1000.0)
    hu[(X**2 + Y**2 < 0.7) & (X**2 + Y**2 > 0.55)] = -100
    hu[(X - 0.3) ** 2 + Y**2 < 0.05] = 900
    return hu + np.random.default_rng(0).normal(0, 12, hu.shape)


def write(path: Path, values: np.ndarray, kind: type = np.int16) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(values.astype(kind)), str(path))
    return path


@pytest.mark.parametrize("padding", [-2000, -3024, -1024, -1000, -1, None])
def test_stored_values_are_refused_whatever_their_padding(tmp_path: Path, padding: int | None) -> None:
    values = (patient() + 1024).clip(0)
    if padding is not None:
        values[CORNERS] = padding
    with pytest.raises(UserError, match=r"not HU \(is the rescale intercept"):
        read_ct(write(tmp_path / "a.nii", values))


@pytest.mark.parametrize("padding", [-2000, -1024, -1])
def test_stored_values_are_refused_where_resampling_drew_them_into_the_padding(tmp_path: Path, padding: int) -> None:
    values = (patient() + 1024).clip(0)
    values[X**2 + Y**2 > 0.6] = padding
    with pytest.raises(UserError, match=r"not HU \(is the rescale intercept"):
        read_ct(write(tmp_path / "a.nii", np.rint(ndimage.gaussian_filter(values, (0, 0.6, 0.6)))))


@pytest.mark.parametrize("padding", [-2000, -1])
def test_grey_levels_are_refused_whatever_their_padding(tmp_path: Path, padding: int) -> None:
    values = ((patient() + 1024) / 8).clip(0, 255)
    values[CORNERS] = padding
    with pytest.raises(UserError, match=r"values from 0 to 2\d\d \(without the padding\) are grey levels"):
        read_ct(write(tmp_path / "a.nii", values))


@pytest.mark.parametrize("padding", [-2000, -1000])
def test_normalised_values_are_refused_whatever_their_padding(tmp_path: Path, padding: int) -> None:
    values = patient().clip(-1000, 1000) / 1000
    values[CORNERS] = padding
    with pytest.raises(UserError, match=r"from -1 to .* \(without the padding\) span too little"):
        read_ct(write(tmp_path / "a.nii", values, np.float32))


@pytest.mark.parametrize("padding", [-2000, -1024, -1000, 0, 300])
@pytest.mark.parametrize("change", [lambda hu: hu, lambda hu: hu[:, 12:28, 14:30].repeat(2, 2)], ids=["all", "inside"])
def test_hu_are_read_whatever_their_padding(tmp_path: Path, padding: int, change: Callable) -> None:
    values = change(np.where(CORNERS, padding, patient()))
    assert read_ct(write(tmp_path / "a.nii", values)).hu.max() >= 900


def test_padding_with_water_is_air_for_every_reader(tmp_path: Path) -> None:
    """Oblique scans included, whose corners are new voxels after resampling."""
    image = sitk.GetImageFromArray(np.where(CORNERS, 0, patient()).astype(np.int16))
    angle = np.radians(20)
    image.SetDirection([np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1])
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    ct = read_ct(tmp_path / "a.nii")
    assert any("padding of exactly 0 HU; taken for air" in note for note in ct.meta["notes"])
    centre = np.array(ct.hu.shape) // 2
    assert abs(ct.hu[tuple(centre)]) < 60
    # Just inside the old corner, towards the middle of the scan.
    place = image.TransformIndexToPhysicalPoint((2, 2, 6))
    x, y, z = np.round((np.array(place) - ct.origin) / ct.spacing).astype(int)
    assert ct.hu[z, y, x] == -1024


@pytest.mark.parametrize("value", [-1024, 0, 300])
def test_a_flat_or_positive_volume_of_ours_is_read_back(tmp_path: Path, value: int) -> None:
    hu = np.full((8, 9, 10), value, np.int16)
    hu[4, 4, 4] += 7
    write_nifti(tmp_path / "a.nii.gz", hu, (2.0, 3.0, 4.0), (-5.0, 6.0, 7.0))
    with pytest.raises(UserError):
        read_ct(tmp_path / "a.nii.gz")
    own = read_own_ct(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(own.hu, hu)
    assert (own.spacing, own.origin) == ((2.0, 3.0, 4.0), (-5.0, 6.0, 7.0))
    with pytest.raises(UserError, match="no such file"):
        read_own_ct(tmp_path / "b.nii.gz")
