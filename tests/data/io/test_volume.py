import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.data.io.ct_image import CtImage
from diffux2ct.data.io.volume import read_ct, read_labels, sample_labels, write_nifti
from diffux2ct.data.preparation.cube import cut_cube
from diffux2ct.errors import UserError

BLOCK_MM = np.array([12.0, -30.0, 48.0])  # where the bright block lies, LPS


def block_image(direction: np.ndarray, spacing=(1.5, 2.0, 3.0), size=(60, 50, 40)) -> sitk.Image:
    """Air with one 1000 HU ball of 9 mm around BLOCK_MM, stored along ``direction``'s axes."""
    image = sitk.Image(size, sitk.sitkInt16)
    image.SetSpacing(spacing)
    image.SetDirection(direction.ravel().tolist())
    middle = np.array([(s - 1) / 2 * d for s, d in zip(size, spacing, strict=True)])
    image.SetOrigin((np.array([5.0, -25.0, 40.0]) - direction @ middle).tolist())
    index = np.stack(np.meshgrid(*(np.arange(s) for s in size), indexing="ij"), -1) * np.array(spacing)
    points = index @ direction.T + np.array(image.GetOrigin())
    inside = np.linalg.norm(points - BLOCK_MM, axis=-1) <= 9.0
    filled = sitk.GetImageFromArray(np.where(inside, 1000, -1000).astype(np.int16).transpose(2, 1, 0))
    filled.CopyInformation(image)
    return filled


def cube_of(ct: CtImage, size: int, spacing: float) -> CtImage:
    """The middle of a CT as a prepared cube."""
    middle = np.array(ct.centre)
    first = (middle - (size - 1) / 2 * spacing).tolist()
    return CtImage(cut_cube(ct, size, spacing, middle), (spacing,) * 3, (first[0], first[1], first[2]))


def centroid(ct: CtImage) -> np.ndarray:
    """Centre of what is brighter than air, mm LPS (x, y, z)."""
    weight = np.clip(ct.hu.astype(float) + 1000, 0, None)
    axes = [ct.origin[i] + np.arange(ct.hu.shape[2 - i]) * ct.spacing[i] for i in range(3)]
    total = weight.sum()
    return np.array([(weight.sum(axis=tuple({0, 1, 2} - {2 - i})) * axes[i]).sum() / total for i in range(3)])


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[j, j], matrix[i, j], matrix[j, i] = c, c, -s, s
    return matrix


def oriented(code: str) -> np.ndarray:
    return np.array(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code)).reshape(3, 3)


@pytest.mark.parametrize("code", ["LPS", "LAS", "RAI", "RAS", "SRP", "PIR"])
@pytest.mark.parametrize("suffix", ["nii.gz", "mha", "nrrd"])
def test_a_block_keeps_its_place_whatever_the_stored_orientation(tmp_path: Path, code: str, suffix: str) -> None:
    path = tmp_path / f"ct.{suffix}"
    sitk.WriteImage(block_image(oriented(code)), str(path))
    ct = read_ct(path)
    assert ct.meta["orientation"] == code
    np.testing.assert_allclose(centroid(ct), BLOCK_MM, atol=0.5)
    cube = cube_of(ct, 24, 3.0)
    assert cube.hu.shape == (24, 24, 24)
    np.testing.assert_allclose(cube.centre, ct.centre, atol=1e-9)
    np.testing.assert_allclose(centroid(cube), BLOCK_MM, atol=0.5)


def test_an_oblique_scan_is_put_upright_and_filled_with_air(tmp_path: Path) -> None:
    direction = rotation(20.0, 2) @ rotation(-10.0, 0) @ oriented("LAS")
    path = tmp_path / "oblique.nii.gz"
    sitk.WriteImage(block_image(direction), str(path))
    ct = read_ct(path)
    np.testing.assert_allclose(centroid(cube_of(ct, 24, 3.0)), BLOCK_MM, atol=0.7)
    # The corners of the upright box lie outside the scan.
    assert ct.hu[0, 0, 0] == -1024
    assert (ct.hu == -1024).mean() > 0.2
    assert ct.hu.max() > 900


def test_grey_levels_of_an_oblique_scan_become_hu(tmp_path: Path) -> None:
    stored = block_image(rotation(20.0, 2) @ oriented("LAS"))
    grey = sitk.Cast((sitk.Cast(stored, sitk.sitkFloat32) + 1000) / 10, sitk.sitkUInt8)
    sitk.WriteImage(grey, str(tmp_path / "grey.nii.gz"))
    ct = read_ct(tmp_path / "grey.nii.gz", rescale=(10, -1000))
    np.testing.assert_allclose(centroid(cube_of(ct, 24, 3.0)), BLOCK_MM, atol=0.7)
    assert (ct.hu[0, 0, 0], ct.hu.max()) == (-1024, pytest.approx(1000, abs=60))
    assert any("grey levels taken as HU = 10 * grey -1000" in note for note in ct.meta["notes"])


def test_a_point_sits_at_its_index_in_lps(tmp_path: Path) -> None:
    image = block_image(oriented("RAI"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    ct = read_ct(tmp_path / "a.nii.gz")
    x, y, z = ((BLOCK_MM - ct.origin) / ct.spacing).round().astype(int)
    assert ct.hu[z, y, x] == 1000
    assert ct.hu[z, y, x - 12] == -1000


def test_written_nifti_overlays_the_scan(tmp_path: Path) -> None:
    sitk.WriteImage(block_image(oriented("LAS")), str(tmp_path / "scan.nii.gz"))
    cube = cube_of(read_ct(tmp_path / "scan.nii.gz"), 32, 2.0)
    write_nifti(tmp_path / "sub" / "cube.nii.gz", cube.hu.astype(np.int16), cube.spacing, cube.origin)
    image = sitk.ReadImage(str(tmp_path / "sub" / "cube.nii.gz"))
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_allclose(image.GetOrigin(), cube.origin, atol=1e-4)
    np.testing.assert_allclose(np.array(image.GetDirection()).reshape(3, 3), np.eye(3), atol=1e-6)
    # A viewer asks by position: the block's centre is bright.
    assert image.GetPixel(image.TransformPhysicalPointToIndex(BLOCK_MM.tolist())) > 900
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["cube.nii.gz"]


def test_labels_of_another_direction_land_on_the_ct(tmp_path: Path) -> None:
    bright = block_image(oriented("RAS"), spacing=(3.0, 3.0, 3.0), size=(30, 30, 24))
    sitk.WriteImage(sitk.Cast(bright > 0, sitk.sitkUInt8) * 7, str(tmp_path / "labels.nii.gz"))
    labels = read_labels(tmp_path / "labels.nii.gz")
    on_grid = sample_labels(labels, 2.0, (40, 40, 40), (BLOCK_MM - 39).tolist())
    assert set(np.unique(on_grid)) == {0, 7}
    place = np.argwhere(on_grid == 7).mean(axis=0)[::-1] * 2.0 + BLOCK_MM - 39
    np.testing.assert_allclose(place, BLOCK_MM, atol=1.0)


def test_padding_below_air_becomes_air_and_metal_stays(tmp_path: Path) -> None:
    hu = np.full((6, 6, 6), -2048, np.int16)
    hu[2:4] = 3071
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "a.mha"))
    ct = read_ct(tmp_path / "a.mha")
    assert ct.hu.dtype == np.int16
    assert set(np.unique(ct.hu)) == {-1024, 3071}


def hu_volume(shape=(8, 9, 10)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)


BAD = {
    "one slice": (hu_volume((1, 32, 32)), "one slice"),
    "nan": (np.where(np.indices((8, 8, 8))[0] == 3, np.nan, -500).astype(np.float32), "64 voxels are NaN"),
    "infinite": (
        np.where(np.indices((8, 8, 8)).sum(0) == 0, np.inf, -500).astype(np.float32),
        "1 voxels are NaN or inf",
    ),
    "two dimensions": (hu_volume((32, 32)), "2-D image"),
    "eight bits": (np.random.default_rng(0).integers(0, 255, (8, 8, 8)).astype(np.uint8), "grey levels, not HU"),
    "no intercept": (hu_volume() + np.int16(1024), "rescale intercept"),
    "normalised": (hu_volume().astype(np.float32) / 1500, "span too little for HU"),
    "too bright": (hu_volume().astype(np.int32) * 100_000, "cannot be HU"),
}


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mha"])
@pytest.mark.parametrize("case", BAD)
def test_what_is_not_a_ct_in_hu_is_one_clear_line(tmp_path: Path, case: str, suffix: str) -> None:
    array, message = BAD[case]
    path = tmp_path / f"bad.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    with pytest.raises(UserError, match=message) as caught:
        read_ct(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_colour_4d_missing_and_foreign_files(tmp_path: Path) -> None:
    colour = sitk.GetImageFromArray(np.zeros((8, 8, 8, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "rgb.mha"))
    four = sitk.JoinSeries([sitk.GetImageFromArray(hu_volume())] * 2)
    sitk.WriteImage(four, str(tmp_path / "four.nii"))
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(hu_volume())]), str(tmp_path / "single.mha"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "rgb.mha": "colour or vector image",
        "four.nii": "4-D image",
        "notes.txt": "cannot be read",
        "gone.nii.gz": "no such file",
        "empty": "no DICOM series",
    }.items():
        with pytest.raises(UserError, match=message):
            read_ct(tmp_path / name)
    assert read_ct(tmp_path / "single.mha").hu.shape == (8, 9, 10)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mha", "nrrd"])
def test_a_truncated_file_is_no_ct(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture) -> None:
    path = tmp_path / f"ct.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(hu_volume((20, 40, 40))), str(path))
    assert read_ct(path).hu.shape == (20, 40, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(UserError, match="truncated"):
        read_ct(path)
    assert capfd.readouterr().err == ""


def test_a_gzip_of_several_members_is_whole(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(hu_volume()), str(tmp_path / "a.nii"))
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:]))
    np.testing.assert_array_equal(read_ct(tmp_path / "b.nii.gz").hu, hu_volume())


def test_labels_must_be_small_whole_numbers(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(hu_volume()), str(tmp_path / "a.nii.gz"))
    with pytest.raises(UserError, match="whole numbers from 0 to 255"):
        read_labels(tmp_path / "a.nii.gz")


@pytest.mark.real
def test_real_ct_with_implant(shared_data: Path) -> None:
    ct = read_ct(shared_data / "ct" / "ts_example_abdpelv3mm.nii.gz")
    assert ct.hu.shape == (112, 101, 122)
    assert (ct.hu.min(), ct.hu.max()) == (-1024, 3071)
    cube = cube_of(ct, 64, 4.0)
    assert cube.hu.shape == (64, 64, 64)
    # Bone lies behind the middle of the body: the spine is posterior (y up), more so than anterior.
    bone = cube.hu > 200
    assert bone[:, 32:].sum() > 2 * bone[:, :32].sum()
    labels = read_labels(shared_data / "ct" / "ts_example_abdpelv3mm_labels.nii.gz")
    assert labels.labels.shape == (30, 101, 122)
    np.testing.assert_allclose(labels.origin, ct.origin, atol=1e-3)
    # Stored as RAS, it now lies as the CT does: its liver (5) is even there, and is not when mirrored. (The file's
    # z origin is wrong: its slices are the scan's upper 30.)
    top = ct.hu[-30:]
    assert top[labels.labels == 5].std() < 40
    assert top[labels.labels[:, :, ::-1] == 5].std() > 80
    with pytest.raises(UserError, match="grey levels, not HU"):
        read_ct(shared_data / "labelled_8bit" / "colonog_0243_ct.nii.gz")
