from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tests.data.io.dicom.dicom_files import UPRIGHT, hu_volume, list_series, refused, slice_dataset, write_series

from diffux2ct.data.io.ct_image import CtImage, content_hash
from diffux2ct.data.io.volume import read_ct, write_nifti
from diffux2ct.errors import UserError

ALONG = [2.5 * i for i in range(6)]


def test_the_longest_ct_is_taken_and_the_rest_named(tmp_path: Path) -> None:
    hu = hu_volume((12, 16, 20))
    paths = write_series(tmp_path / "p", hu, uid="1.2.10", SeriesDescription="chest")
    write_series(tmp_path / "p", hu_volume((3, 16, 20)), uid="1.2.11")
    write_series(tmp_path / "p", hu_volume((20, 16, 20)), uid="1.2.12", modality="MR")
    (tmp_path / "p" / "notes.txt").write_text("no DICOM")
    ct = read_ct(tmp_path / "p")
    np.testing.assert_array_equal(ct.hu, hu)
    assert ct.hu.dtype == np.int16
    np.testing.assert_allclose(ct.spacing, (0.8, 0.9, 2.5), atol=1e-6)
    np.testing.assert_allclose(ct.origin, (-10.0, -20.0, 30.0), atol=1e-6)
    assert len(ct.meta["notes"]) == 2
    assert any("1.2.12" in note and "MR, 20 slices" in note for note in ct.meta["notes"])
    series = list_series(tmp_path / "p")
    assert [(s.uid, s.modality, s.num_slices) for s in series] == [
        ("1.2.12", "MR", 20),
        ("1.2.10", "CT", 12),
        ("1.2.11", "CT", 3),
    ]
    assert series[1].description == "chest"
    np.testing.assert_array_equal(read_ct(paths[4]).hu, hu)
    np.testing.assert_array_equal(read_ct(tmp_path / "p", "1.2.11").hu, hu_volume((3, 16, 20)))
    with pytest.raises(UserError, match="no series 9.9 here; there are"):
        read_ct(tmp_path / "p", "9.9")
    refused(next((tmp_path / "p").glob("1.2.12_*")), "modality MR, not CT")


def test_holes_single_slices_and_other_modalities_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", hu_volume(), modality="MR")
    write_series(tmp_path / "single", hu_volume((1, 8, 8)))
    write_series(tmp_path / "gap", hu_volume(), along=[0, 2.5, 5, 12.5, 15, 17.5])
    # Thick slices at half their thickness: a lost one is a hole too, though its neighbours meet.
    write_series(tmp_path / "overlap", hu_volume(), along=[0, 2.5, 5, 10, 12.5, 15], SliceThickness=5)
    refused(tmp_path / "mr", "modality MR, not CT")
    refused(tmp_path / "single", "one slice")
    refused(tmp_path / "gap", "slices are missing .a gap of 7.5 mm where slices lie 2.5")
    refused(tmp_path / "overlap", "slices are missing .a gap of 5.0 mm")


def test_repeated_slices_are_dropped_and_damaged_ones_named(tmp_path: Path) -> None:
    hu = hu_volume((7, 64, 64))
    paths = write_series(tmp_path / "p", hu, along=[0, 2.5, 5, 5, 7.5, 10, 12.5])
    ct = read_ct(tmp_path / "p")
    np.testing.assert_array_equal(ct.hu, hu[[0, 1, 2, 4, 5, 6]])
    assert "1 slices at repeated positions dropped" in ct.meta["notes"][0]
    whole = paths[-1].read_bytes()
    paths[-1].write_bytes(whole[:1500])
    assert str(paths[-1]) in refused(tmp_path / "p", "truncated")
    paths[-1].write_bytes(whole[:140])
    notes = read_ct(tmp_path / "p").meta["notes"]
    assert any(str(paths[-1]) in note and "damaged" in note for note in notes)
    refused(paths[-1], "damaged")


def test_one_phase_of_several_is_taken(tmp_path: Path) -> None:
    early, late = hu_volume(seed=1), hu_volume(seed=2)
    both = np.concatenate([late, early])
    write_series(
        tmp_path,
        both,
        along=ALONG + ALONG,
        change=lambda i, dataset: setattr(dataset, "AcquisitionNumber", 2 if i < 6 else 1),
    )
    ct = read_ct(tmp_path)
    np.testing.assert_array_equal(ct.hu, early)
    assert "number 1 taken, 6 slices of others left out" in ct.meta["notes"][0]


def test_localizers_pictures_and_other_orientations_are_left_out(tmp_path: Path) -> None:
    hu = hu_volume((6, 10, 10))
    write_series(tmp_path, hu)
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    odd = [
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "orientation": coronal},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        {"orientation": coronal},
        {"ImagePositionPatient": None},
    ]
    for i, tags in enumerate(odd):
        dataset = slice_dataset(np.zeros((10, 10), np.uint16), number=50 + i, **tags)
        dataset.save_as(tmp_path / f"odd{i}.dcm", enforce_file_format=True)
    ct = read_ct(tmp_path)
    np.testing.assert_array_equal(ct.hu, hu)
    told = " ".join(ct.meta["notes"])
    for part in ("2 localizers", "1 slices without a position", "1 slices of another size or orientation left out"):
        assert part in told
    assert list_series(tmp_path)[0].num_slices == 8


@pytest.mark.parametrize("orientation", [UPRIGHT, (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0)])
def test_a_series_of_any_orientation_is_the_same_scan(tmp_path: Path, orientation) -> None:
    hu = hu_volume((7, 9, 11))
    normal = np.cross(orientation[:3], orientation[3:])
    write_series(tmp_path / "p", hu, orientation=orientation, move=normal)
    ct = read_ct(tmp_path / "p")
    image = sitk.GetImageFromArray(ct.hu)
    image.SetSpacing(ct.spacing)
    # What is stored first lies where the header says.
    index = np.round((np.array([-10.0, -20.0, 30.0]) - ct.origin) / ct.spacing).astype(int)
    assert ct.hu[tuple(index[::-1])] == hu[0, 0, 0]
    for code in ("RAS", "PIR"):
        sitk.WriteImage(sitk.DICOMOrient(image, code), str(tmp_path / f"{code}.nii.gz"))
        assert content_hash(read_ct(tmp_path / f"{code}.nii.gz")) == content_hash(ct)
    other = CtImage(ct.hu.copy(), ct.spacing, ct.origin)
    other.hu[0, 0, 0] += 1
    assert content_hash(other) != content_hash(ct)
    assert content_hash(CtImage(ct.hu, (ct.spacing[0], ct.spacing[1], 2.6), ct.origin)) != content_hash(ct)


@pytest.mark.real
def test_real_dicom_series(shared_data: Path, tmp_path: Path) -> None:
    ct = read_ct(shared_data / "dicom_series")
    assert ct.hu.shape == (20, 512, 512)
    assert ct.spacing == (0.9765625, 0.9765625, 2.0)
    assert (ct.hu.min(), ct.meta["format"], ct.meta["notes"]) == (-1024, "dicom", [])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(shared_data / "dicom_series")))
    np.testing.assert_array_equal(ct.hu, np.maximum(sitk.GetArrayFromImage(reader.Execute()), -1024))
    # The same scan in another format and orientation has the same hash.
    write_nifti(tmp_path / "lps.nii", ct.hu, ct.spacing, ct.origin)
    image = sitk.ReadImage(str(tmp_path / "lps.nii"))
    sitk.WriteImage(sitk.DICOMOrient(image, "SRA"), str(tmp_path / "sra.nii"))
    assert read_ct(tmp_path / "sra.nii").meta["orientation"] == "SRA"
    assert {content_hash(read_ct(tmp_path / name)) for name in ("lps.nii", "sra.nii")} == {content_hash(ct)}
    assert [(s.modality, s.num_slices, s.description) for s in list_series(shared_data / "dicom_series")] == [
        ("CT", 20, "CT Body 3.0")
    ]
