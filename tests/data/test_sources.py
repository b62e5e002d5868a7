from pathlib import Path

import pytest

from diffux2ct.data.sources import discover
from diffux2ct.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 128 + b"DICM" if path.suffix in ("", ".dcm") else b"")


def found(name: str, root: Path) -> dict[str, tuple[str, str | None]]:
    return {
        case.patient: (
            str(case.path.relative_to(root)),
            None if case.labels is None else str(case.labels.relative_to(root)),
        )
        for case in discover(name, root)
    }


def test_folder_takes_files_and_series_and_sets_labels_aside(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.nii.gz",
        "sub/b.mha",
        "sub/deep/c.nrrd",
        "d.nii",
        "a_labels.nii.gz",
        "labelsTr/d.nii",
        "x.txt",
    )
    touch(
        tmp_path,
        "totalseg_s0308_ct.nii.gz",
        "totalseg_s0308_label.nii.gz",
        "mask_4label_e.nii.gz",
        ".hidden.nii.gz",
    )
    touch(tmp_path, "dicom/P1/1.2.3/0001", "dicom/P1/1.2.3/0002", "dicom/P2/0001.dcm")
    assert found("folder", tmp_path) == {
        "a": ("a.nii.gz", "a_labels.nii.gz"),
        "b": ("sub/b.mha", None),
        "c": ("sub/deep/c.nrrd", None),
        "d": ("d.nii", "labelsTr/d.nii"),
        "totalseg_s0308_ct": ("totalseg_s0308_ct.nii.gz", "totalseg_s0308_label.nii.gz"),
        "P1": ("dicom/P1/1.2.3", None),
        "P2": ("dicom/P2", None),
    }


def test_repeated_names_take_the_parent_folder(tmp_path: Path) -> None:
    touch(tmp_path, "P1/ct.nii.gz", "P1/label.nii.gz", "P2/ct.nii.gz", "P2/label.nii.gz")
    assert found("folder", tmp_path) == {
        "P1": ("P1/ct.nii.gz", "P1/label.nii.gz"),
        "P2": ("P2/ct.nii.gz", "P2/label.nii.gz"),
    }


def test_raw_folder_may_be_a_series_itself(tmp_path: Path) -> None:
    touch(tmp_path / "patient7", "1.dcm", "2.dcm")
    assert found("folder", tmp_path / "patient7") == {"patient7": (".", None)}


def test_lidc_takes_the_longest_series_of_a_patient(tmp_path: Path) -> None:
    base = "LIDC-IDRI/LIDC-IDRI-0001"
    touch(
        tmp_path,
        f"{base}/1.2/CR/1.dcm",
        *(f"{base}/1.3/CT/{i}.dcm" for i in range(5)),
        "LIDC-IDRI-0002/1.9/1.dcm",
    )
    touch(tmp_path, "LIDC-IDRI-0314.nii.gz", "other/1.dcm")
    assert found("lidc_idri", tmp_path) == {
        "LIDC-IDRI-0001": (f"{base}/1.3/CT", None),
        "LIDC-IDRI-0002": ("LIDC-IDRI-0002/1.9", None),
        "LIDC-IDRI-0314": ("LIDC-IDRI-0314.nii.gz", None),
    }


def test_spine_and_pelvis_sets_pair_labels(tmp_path: Path) -> None:
    touch(tmp_path, "rawdata/volumes/liver_12.nii.gz", "rawdata/labels/liver_12_seg.nii.gz")
    touch(tmp_path, "dataset6_CLINIC_0001_data.nii.gz", "masks/dataset6_CLINIC_0001_mask_4label.nii.gz")
    for name in ("ctspine1k", "ctpelvic1k", "lumbarv"):
        assert found(name, tmp_path) == {
            "liver_12": ("rawdata/volumes/liver_12.nii.gz", "rawdata/labels/liver_12_seg.nii.gz"),
            "dataset6_CLINIC_0001_data": (
                "dataset6_CLINIC_0001_data.nii.gz",
                "masks/dataset6_CLINIC_0001_mask_4label.nii.gz",
            ),
        }


def test_errors(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="no CT scan found"):
        discover("folder", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        discover("folder", tmp_path / "gone")
    with pytest.raises(UserError, match="choose one of ctpelvic1k"):
        discover("lits", tmp_path)
