from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.data.volume_io import read_ct
from diffux2ct.errors import UserError


def hu_volume(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)


def write_series(
    folder: Path,
    hu: np.ndarray,
    uid: str,
    modality: str = "CT",
    positions: np.ndarray | None = None,
    tilt: float = 0.0,
) -> list[Path]:
    """A DICOM series, stored as scanners do: unsigned-like values with slope 1 and intercept -1024."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = np.arange(len(hu)) * 2.5 if positions is None else positions
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    paths = []
    for i, (plane, z) in enumerate(zip(hu, positions, strict=True)):
        image = sitk.GetImageFromArray(plane[None].astype(np.int16))
        image.SetSpacing((0.8, 0.9, 2.5))
        for key, value in {
            "0008|0060": modality,
            "0020|000e": uid,
            "0020|000d": "1.2.3",
            "0008|0018": f"{uid}.{i}",
            "0020|0013": str(i),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0032": f"-10\\{z * np.tan(np.radians(tilt)) - 20}\\{z + 30}",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(key, value)
        # Names in reverse, so that the order cannot come from them.
        paths.append(folder / f"{uid}_{len(hu) - i:03d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def test_dicom_folder_takes_the_longest_ct_and_names_the_rest(tmp_path: Path) -> None:
    hu = hu_volume((12, 16, 20))
    paths = write_series(tmp_path / "p", hu, "1.2.10")
    write_series(tmp_path / "p", hu_volume((3, 16, 20)), "1.2.11")
    write_series(tmp_path / "p", hu_volume((20, 16, 20)), "1.2.12", modality="MR")
    ct = read_ct(tmp_path / "p")
    np.testing.assert_array_equal(ct.hu, hu)
    np.testing.assert_allclose(ct.spacing, (0.8, 0.9, 2.5), atol=1e-6)
    np.testing.assert_allclose(ct.origin, (-10.0, -20.0, 30.0), atol=1e-6)
    assert len(ct.meta["notes"]) == 2
    assert any("1.2.12" in note and "MR, 20 slices" in note for note in ct.meta["notes"])
    one = read_ct(paths[4])
    np.testing.assert_array_equal(one.hu, hu)
    with pytest.raises(UserError, match="modality .*MR.*not CT"):
        read_ct(next((tmp_path / "p").glob("1.2.12_*")))


def test_dicom_errors_are_one_line(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", hu_volume((5, 8, 8)), "1.3", modality="MR")
    write_series(tmp_path / "single", hu_volume((1, 8, 8)), "1.4")
    write_series(
        tmp_path / "gap", hu_volume((6, 8, 8)), "1.5", positions=np.array([0, 2.5, 5, 12.5, 15, 17.5])
    )
    write_series(tmp_path / "tilt", hu_volume((6, 8, 8)), "1.6", tilt=12.0)
    for name, message in {
        "mr": "modality MR, not CT",
        "single": "one slice",
        "gap": "slices are missing .a gap of 7.5 mm",
        "tilt": "tilted by 12.0 degrees",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_ct(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_repeated_and_damaged_slices_are_told(tmp_path: Path) -> None:
    hu = hu_volume((7, 64, 64))
    paths = write_series(tmp_path / "p", hu, "1.7", positions=np.array([0, 2.5, 5, 5, 7.5, 10, 12.5]))
    ct = read_ct(tmp_path / "p")
    assert ct.hu.shape == (6, 64, 64)
    np.testing.assert_allclose(ct.spacing[2], 2.5, atol=1e-6)
    assert "1 slices at repeated positions dropped" in ct.meta["notes"][0]
    paths[-1].write_bytes(paths[-1].read_bytes()[:1500])
    assert any("damaged" in note for note in read_ct(tmp_path / "p").meta["notes"])
    with pytest.raises(UserError, match="truncated"):
        read_ct(paths[-1])


@pytest.mark.real
def test_real_dicom_series(shared_data: Path) -> None:
    ct = read_ct(shared_data / "dicom_series")
    assert ct.hu.shape == (20, 512, 512)
    assert ct.spacing == (0.9765625, 0.9765625, 2.0)
    assert (ct.hu.min(), ct.meta["format"], ct.meta["notes"]) == (-1024, "dicom", [])
