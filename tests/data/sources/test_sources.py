import os
from pathlib import Path

import pytest
from pydicom import dcmread
from tests.data.sources.sources_tree import write_series, write_text, write_volume

from diffux2ct.data.sources import SOURCES, Discovery, discover
from diffux2ct.data.sources.folder import _ORPHAN
from diffux2ct.errors import UserError


def found(discovery: Discovery, root: Path) -> dict[str, tuple[str, str | None]]:
    return {
        case.patient: (
            case.path.relative_to(root).as_posix(),
            None if case.labels is None else case.labels.relative_to(root).as_posix(),
        )
        for case in discovery.cases
    }


def test_folder_takes_files_and_series_and_sets_labels_aside(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "sub/b.mha", "sub/deep/c.nrrd", "d.nii", "totalseg_s0308_ct.nii.gz", ".hidden.nii.gz"):
        write_volume(tmp_path / name)
    for name in ("a_labels.nii.gz", "labelsTr/d.nii", "totalseg_s0308_label.nii.gz", "mask_4label_e.nii.gz"):
        write_volume(tmp_path / name, label=True)
    write_text(tmp_path / "x.txt", "no scan")
    write_series(tmp_path / "dicom/P1/1.2.3", patient="")
    write_series(tmp_path / "dicom/P2", patient="")
    write_series(tmp_path / "dicom/P2/xray", "DX", num=1)
    write_series(tmp_path / "dicom/P3/topogram", num=2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    discovery = discover("folder", tmp_path)
    assert found(discovery, tmp_path) == {
        "a": ("a.nii.gz", "a_labels.nii.gz"),
        "b": ("sub/b.mha", None),
        "c": ("sub/deep/c.nrrd", None),
        "d": ("d.nii", "labelsTr/d.nii"),
        "totalseg_s0308_ct": ("totalseg_s0308_ct.nii.gz", "totalseg_s0308_label.nii.gz"),
        "P1": ("dicom/P1/1.2.3", None),
        "P2": ("dicom/P2", None),
    }
    assert discovery.left_out == [
        ("dicom/P2/xray", "DICOM of modality DX (radiograph), not CT"),
        ("dicom/P3/topogram", "a localizer (scout), not a CT volume"),
        ("mask_4label_e.nii.gz", _ORPHAN),
    ]
    assert (discovery.split, discovery.notes) == (None, [])


def test_repeated_names_take_the_parent_folder(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        write_volume(tmp_path / patient / "ct.nii.gz")
        write_volume(tmp_path / patient / "label.nii.gz", label=True)
    assert found(discover("lumbarv", tmp_path), tmp_path) == {
        "P1": ("P1/ct.nii.gz", "P1/label.nii.gz"),
        "P2": ("P2/ct.nii.gz", "P2/label.nii.gz"),
    }


def test_raw_folder_may_be_a_series_itself(tmp_path: Path) -> None:
    write_series(tmp_path / "patient7", patient="")
    assert found(discover("folder", tmp_path / "patient7"), tmp_path / "patient7") == {"patient7": (".", None)}


def test_series_mixed_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    # One flat folder, as some archives export it: two patients' scans, a scout and a radiograph among them.
    first = write_series(tmp_path / "all", patient="A", number=1)
    second = write_series(tmp_path / "all", patient="B", number=2)
    write_series(tmp_path / "all", num=2, patient="A", number=3, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_series(tmp_path / "all", "CR", num=1, patient="B", number=4)
    discovery = discover("folder", tmp_path)
    assert [(case.patient, case.series_uid) for case in discovery.cases] == [("A", first), ("B", second)]
    assert sorted(reason for _, reason in discovery.left_out) == [
        "DICOM of modality CR, not CT",
        "a localizer (scout) or a single slice, not a CT volume",
    ]


def test_each_file_of_a_mixed_folder_is_judged_by_itself(tmp_path: Path) -> None:
    """A scout with its series' UID, sorted last, takes no slices with it; two patients with one UID are two scans."""
    first = write_series(tmp_path / "all", patient="A", number=1)
    write_series(tmp_path / "all", patient="A", number=2, uid="1.2.9")
    write_series(tmp_path / "all", patient="B", number=3, uid="1.2.9")
    write_series(
        tmp_path / "all", num=1, patient="A", number=9, uid=first, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")
    )
    cases = discover("folder", tmp_path).cases
    assert {(case.patient, case.series_uid, case.patient_id) for case in cases} == {
        ("A", first, "A"),
        ("A", "1.2.9", "A"),
        ("B", "1.2.9", "B"),
    }


def test_a_series_without_its_uid_beside_another_is_a_scan(tmp_path: Path) -> None:
    first = write_series(tmp_path / "all", patient="A", number=1)
    write_series(tmp_path / "all", patient="B", number=2, uid="1.2.9")
    for path in (tmp_path / "all").glob("2-*"):
        dataset = dcmread(path)
        del dataset.SeriesInstanceUID
        dataset.save_as(path)
    cases = discover("folder", tmp_path).cases
    assert {(case.patient, case.series_uid) for case in cases} == {("A", first), ("B", "")}


def test_a_series_behind_many_previews_is_found(tmp_path: Path) -> None:
    write_series(tmp_path / "p1", patient="A")
    for i in range(30):
        write_text(tmp_path / f"p1/0-preview{i:02d}.jpg", "no DICOM")
    assert [case.patient for case in discover("folder", tmp_path).cases] == ["A"]


def test_a_series_spread_over_folders_is_one_scan(tmp_path: Path) -> None:
    """Parts of a series are joined; scans that an anonymiser gave one UID are not."""
    uid = write_series(tmp_path / "A/DIR0", patient="A", num=12)
    (tmp_path / "A/DIR1").mkdir()
    for path in sorted((tmp_path / "A/DIR0").iterdir())[6:]:
        path.rename(tmp_path / "A/DIR1" / path.name)
    for folder in ("B1", "B2"):
        write_series(tmp_path / folder, patient="B", uid="1.2.9")
    discovery = discover("folder", tmp_path)
    assert [(c.patient, c.path.relative_to(tmp_path).as_posix(), len(c.folders)) for c in discovery.cases] == [
        ("A", "A", 2),
        ("B", "B1", 0),
        ("B", "B2", 0),
    ]
    assert discovery.notes[0] == f"series {uid} is spread over 2 folders, which are taken together: A/DIR0, A/DIR1"
    assert "series 1.2.9 is in 2 folders as often" in discovery.notes[1]


def test_a_patient_in_several_folders_is_one(tmp_path: Path) -> None:
    # Exported with one folder a series; one header lost its ID, in the folder of a patient who is known.
    for folder, patient in (("1.2.3", "ANNA"), ("1.2.4", "ANNA"), ("1.2.5/a", "BEA"), ("1.2.5/b", "")):
        write_series(tmp_path / folder, patient=patient)
    write_series(tmp_path / "1.2.6", patient="")
    first = write_series(tmp_path / "flat", patient="BEA", number=1)
    second = write_series(tmp_path / "flat", patient="BEA", number=2)
    discovery = discover("folder", tmp_path)
    assert [(c.patient, c.path.relative_to(tmp_path).as_posix()) for c in discovery.cases] == [
        ("1.2.6", "1.2.6"),
        ("ANNA", "1.2.3"),
        ("ANNA", "1.2.4"),
        ("BEA", "1.2.5/a"),
        ("BEA", "1.2.5/b"),
        ("BEA", "flat"),
        ("BEA", "flat"),
    ]
    assert {case.series_uid for case in discovery.cases} == {None, first, second}
    assert discovery.notes == [
        "the PatientID of 2 patients is in several folders, which are taken together: ANNA in 1.2.3, 1.2.4, ..."
    ]


def test_one_patient_id_for_all_is_an_anonymisers(tmp_path: Path) -> None:
    for folder in ("P1", "P2", "P3"):
        write_series(tmp_path / folder, patient="ANON")
    discovery = discover("folder", tmp_path)
    assert [case.patient for case in discovery.cases] == ["P1", "P2", "P3"]
    (note,) = discovery.notes
    assert note.startswith("all 3 DICOM folders have the PatientID ANON, taken for an anonymiser's")
    write_series(tmp_path / "P4", patient="CLEO")
    discovery = discover("lumbarv", tmp_path)
    assert [case.patient for case in discovery.cases] == ["ANON", "ANON", "ANON", "CLEO"]
    assert "ANON in P1, P2, P3" in discovery.notes[0]


def test_scans_of_one_study_are_of_one_patient(tmp_path: Path) -> None:
    """Folders with one anonymiser's PatientID, or with none; a chain of studies is one patient too."""
    studies = {"P1/late": "1.1", "P2/early": "1.1", "P3": "1.2", "P4": "1.3", "P5": "1.4", "P6": "1.4"}
    for name in ("ANON", ""):
        for folder, study in studies.items():
            write_series(tmp_path / f"raw{name}" / folder, patient=name, study=study)
        write_series(tmp_path / f"raw{name}" / "P2/other", patient=name, study="1.2")
        discovery = discover("folder", tmp_path / f"raw{name}")
        assert [case.patient for case in discovery.cases] == ["P1", "P1", "P1", "P1", "P4", "P5", "P5"]
        assert any(note.startswith("study 1.4 is in P5, P6, taken for one patient") for note in discovery.notes)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write_volume(tmp_path / "p1/ct.nii.gz")
    os.symlink(tmp_path, tmp_path / "p1/again")
    os.symlink(tmp_path / "p1", tmp_path / "copy")
    assert len(discover("folder", tmp_path).cases) == 1


def test_archives_and_other_formats_are_named(tmp_path: Path) -> None:
    write_volume(tmp_path / "p1.nii.gz")
    write_text(tmp_path / "CTPelvic1K_dataset6_data.tar.gz", "")
    write_text(tmp_path / "scan/ct_xray_data.h5", "")
    assert discover("folder", tmp_path).left_out == [
        ("CTPelvic1K_dataset6_data.tar.gz", "an archive; unpack it first"),
        ("scan/ct_xray_data.h5", "HDF5; X2CT-GAN's files are read by dataset.prepare.source=x2ct"),
    ]


@pytest.mark.real
def test_real_scans_get_their_labels(shared_data: Path) -> None:
    discovery = discover("folder", shared_data)
    assert len(discovery.cases) >= 16
    labelled = [case for case in discovery.cases if case.labels is not None]
    assert len(labelled) >= 11
    for case in labelled:
        assert case.labels is not None
        assert case.labels.name.startswith(case.path.name.removesuffix(".nii.gz").removesuffix("_ct"))
    assert {reason for _, reason in discovery.left_out} <= {"by its content no CT scan or label map"}


def test_everything_that_is_not_used_is_listed(tmp_path: Path) -> None:
    write_volume(tmp_path / "p1.nii.gz")
    write_volume(tmp_path / "p2.nii.gz").rename(tmp_path / "p2_of_monday")  # by its content
    write_volume(tmp_path / "pair/p3.hdr")
    for index in range(30):
        (tmp_path / f"preview{index}.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "thesis.pdf").write_bytes(b"%PDF")
    (tmp_path / "empty").write_bytes(b"")
    found = discover("folder", tmp_path)
    assert [case.patient for case in found.cases] == ["p1", "p2_of_monday", "p3"]
    reason = "by its content no CT scan or label map"
    assert found.left_out == [("*.jpg", f"30 files: {reason}"), ("empty", reason), ("thesis.pdf", reason)]


def test_errors(tmp_path: Path) -> None:
    write_text(tmp_path / "notes.txt", "")
    for name in SOURCES:
        with pytest.raises(UserError, match="no CT scan found"):
            discover(name, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        discover("folder", tmp_path / "gone")
    with pytest.raises(UserError, match="choose from ctpelvic1k"):
        discover("lits", tmp_path)
    with pytest.raises(UserError, match="source ctspine1k has the parts COLONOG"):
        discover("ctspine1k", tmp_path, origins=["LUNA"])
    write_series(tmp_path / "x", "CR", num=1)
    with pytest.raises(UserError, match="1 left out, the first: x: DICOM of modality CR"):
        discover("folder", tmp_path)
