import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.data.io.volume import (
    CtImage,
    blur_for,
    crop_or_pad,
    read_ct,
    read_labels,
    resample,
    sample_labels,
    write_nifti,
)
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
def test_a_block_keeps_its_place_whatever_the_stored_orientation(
    tmp_path: Path, code: str, suffix: str
) -> None:
    path = tmp_path / f"ct.{suffix}"
    sitk.WriteImage(block_image(oriented(code)), str(path))
    ct = read_ct(path)
    assert ct.meta["orientation"] == code
    np.testing.assert_allclose(centroid(ct), BLOCK_MM, atol=0.5)
    coarse = resample(ct, 3.0)
    np.testing.assert_allclose(centroid(coarse), BLOCK_MM, atol=0.5)
    np.testing.assert_allclose(coarse.centre, ct.centre, atol=1e-9)
    cube = crop_or_pad(coarse, 24)
    assert cube.hu.shape == (24, 24, 24)
    np.testing.assert_allclose(centroid(cube), BLOCK_MM, atol=0.5)


def test_an_oblique_scan_is_put_upright_and_filled_with_air(tmp_path: Path) -> None:
    direction = rotation(20.0, 2) @ rotation(-10.0, 0) @ oriented("LAS")
    path = tmp_path / "oblique.nii.gz"
    sitk.WriteImage(block_image(direction), str(path))
    ct = read_ct(path)
    np.testing.assert_allclose(centroid(crop_or_pad(resample(ct, 3.0), 24)), BLOCK_MM, atol=0.7)
    # The corners of the upright box lie outside the scan.
    assert ct.hu[0, 0, 0] == -1024
    assert (ct.hu == -1024).mean() > 0.2
    assert ct.hu.max() > 900


def test_a_point_sits_at_its_index_in_lps(tmp_path: Path) -> None:
    image = block_image(oriented("RAI"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    ct = read_ct(tmp_path / "a.nii.gz")
    x, y, z = ((BLOCK_MM - ct.origin) / ct.spacing).round().astype(int)
    assert ct.hu[z, y, x] == 1000
    assert ct.hu[z, y, x - 12] == -1000


@pytest.mark.parametrize("anti_alias", [True, False])
def test_a_checkerboard_becomes_grey_only_with_anti_aliasing(anti_alias: bool) -> None:
    board = np.indices((48, 48, 48)).sum(axis=0) % 2 * 1000.0 - 500.0
    # 3 mm from 1 mm voxels: every sample hits a voxel's centre, so without a low-pass the board survives whole.
    coarse = resample(CtImage(board.astype(np.float32), (1.0,) * 3, (0.0,) * 3), 3.0, anti_alias=anti_alias)
    assert coarse.hu.shape == (16, 16, 16)
    deviation = coarse.hu[3:-3, 3:-3, 3:-3].std()
    if anti_alias:
        assert deviation < 1.0
    else:
        assert deviation == pytest.approx(500.0, rel=0.01)


def test_low_pass_acts_only_along_axes_that_become_coarser() -> None:
    noise = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    ct = CtImage(noise, (1.0, 1.0, 4.0), (0.0,) * 3)
    assert blur_for(ct, (1.0, 1.0, 2.0)) is ct
    blurred = blur_for(ct, (4.0, 1.0, 4.0)).hu
    assert np.diff(blurred, axis=2).std() < 0.3 * np.diff(noise, axis=2).std()
    # 12 voxels of a row average to one: the mean is kept.
    np.testing.assert_allclose(blurred.mean(), noise.mean(), atol=0.02)
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 24, 24)).copy()
    np.testing.assert_allclose(
        blur_for(CtImage(ramp, (1.0,) * 3, (0.0,) * 3), (4.0, 4.0, 1.0)).hu, ramp, atol=1e-2
    )


def test_crop_and_pad_keep_every_voxel_at_its_place() -> None:
    hu = np.arange(6 * 8 * 11, dtype=np.int16).reshape(6, 8, 11)
    ct = CtImage(hu, (2.0, 2.0, 2.0), (-7.0, 3.0, 100.0))
    cube = crop_or_pad(ct, 8)
    assert cube.hu.dtype == np.int16
    # z: 6 -> 8 pads one slice below and above; y as it is; x: 11 -> 8 cuts.
    assert (cube.hu[[0, -1]] == -1024).all()
    assert cube.origin[1:] == (3.0, 98.0)
    start = round((cube.origin[0] + 7.0) / 2)
    assert start in (1, 2)
    np.testing.assert_array_equal(cube.hu[1:7], hu[:, :, start : start + 8])
    aside = crop_or_pad(ct, (3, 3, 3), centre=(-7.0, 3.0, 100.0), pad=-5)
    assert aside.origin == (-9.0, 1.0, 98.0)
    assert aside.hu[1, 1, 1] == hu[0, 0, 0]
    assert aside.hu[0, 0, 0] == -5
    assert (crop_or_pad(ct, 4, centre=(1000.0, 0.0, 0.0)).hu == -1024).all()


def test_written_nifti_overlays_the_scan(tmp_path: Path) -> None:
    sitk.WriteImage(block_image(oriented("LAS")), str(tmp_path / "scan.nii.gz"))
    cube = crop_or_pad(resample(read_ct(tmp_path / "scan.nii.gz"), 2.0), 32)
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
    "eight bits": (
        np.random.default_rng(0).integers(0, 255, (8, 8, 8)).astype(np.uint8),
        "grey levels, not HU",
    ),
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
    cube = crop_or_pad(resample(ct, 4.0), 64)
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
