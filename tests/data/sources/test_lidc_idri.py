from pathlib import Path

from tests.data.sources.sources_tree import write_series, write_text, write_volume

from diffux2ct.data.sources import discover


def test_tcia_tree(tmp_path: Path) -> None:
    """The archive's folders by name; patient 0132 has two scans, as eight patients of LIDC-IDRI have."""
    base = tmp_path / "manifest-1600709154662/LIDC-IDRI"
    ct = base / "LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192"
    write_series(ct)
    write_series(base / "LIDC-IDRI-0001/01-01-2000-NA-NA-35511/3000923.000000-NA-62357", "DX", num=2)
    first = base / "LIDC-IDRI-0132/01-01-2000-NA-NA-11111/3163.000000-NA-1"
    second = base / "LIDC-IDRI-0132/01-01-2000-NA-NA-22222/5418.000000-NA-2"
    shared = write_series(first)
    write_series(second)
    write_series(base / "LIDC-IDRI-0132/01-01-2000-NA-NA-11111/copy", uid=shared)
    write_series(base / "LIDC-IDRI-0132/01-01-2000-NA-NA-11111/7.000000-Nodule-3", "SEG", num=1)
    write_series(base / "LIDC-IDRI-0132/01-01-2000-NA-NA-11111/8.000000-Nodule-4", "SR", num=1)
    write_series(base / "LIDC-IDRI-0999/1.2.3/4.5.6", num=3)
    write_volume(tmp_path / "LIDC-IDRI-0314.nii.gz")
    write_volume(tmp_path / "LIDC-IDRI-0314_nodule_mask.nii.gz", label=True)
    write_series(tmp_path / "elsewhere/scan", patient="somebody")
    discovery = discover("lidc_idri", tmp_path)
    assert [(case.patient, case.path) for case in discovery.cases] == [
        ("LIDC-IDRI-0001", ct),
        ("LIDC-IDRI-0132", first),
        ("LIDC-IDRI-0132", second),
        ("LIDC-IDRI-0314", tmp_path / "LIDC-IDRI-0314.nii.gz"),
    ]
    below = "manifest-1600709154662/LIDC-IDRI"
    assert dict(discovery.left_out) == {
        f"{below}/LIDC-IDRI-0001/01-01-2000-NA-NA-35511/3000923.000000-NA-62357": (
            "DICOM of modality DX (radiograph), not CT"
        ),
        f"{below}/LIDC-IDRI-0132/01-01-2000-NA-NA-11111/copy": (
            f"the same series as {below}/LIDC-IDRI-0132/01-01-2000-NA-NA-11111/3163.000000-NA-1"
        ),
        f"{below}/LIDC-IDRI-0132/01-01-2000-NA-NA-11111/7.000000-Nodule-3": (
            "DICOM of modality SEG (segmentation), not CT"
        ),
        f"{below}/LIDC-IDRI-0132/01-01-2000-NA-NA-11111/8.000000-Nodule-4": "DICOM of modality SR (report), not CT",
        f"{below}/LIDC-IDRI-0999/1.2.3/4.5.6": "a CT series of 3 images, too few for a scan",
        "LIDC-IDRI-0314_nodule_mask.nii.gz": "labels are not used",
        "elsewhere/scan": "of no patient LIDC-IDRI-xxxx",
    }
    assert discovery.notes == ["1 patients have several scans: LIDC-IDRI-0132"]


def test_one_folder_a_series_with_the_archives_table(tmp_path: Path) -> None:
    """Folders named by SeriesInstanceUID say no patient: the headers do; the table tells what was not downloaded."""
    here, gone = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1", "1.3.6.1.4.1.14519.5.2.1.6279.6001.2"
    write_series(tmp_path / here, patient="LIDC-IDRI-0007", uid=here)
    write_text(
        tmp_path / "metadata.csv",
        "Series UID,Collection,Subject ID,Modality,Number of Images,File Location\n"
        f"{here},LIDC-IDRI,LIDC-IDRI-0007,CT,12,.\\{here}\n"
        f"{gone},LIDC-IDRI,LIDC-IDRI-0008,CT,130,.\\{gone}\n"
        f"{gone}.9,LIDC-IDRI,LIDC-IDRI-0008,DX,2,.\\{gone}.9\n",
    )
    discovery = discover("lidc_idri", tmp_path)
    assert [(case.patient, case.path.name) for case in discovery.cases] == [("LIDC-IDRI-0007", here)]
    assert discovery.notes == [
        f"metadata.csv lists 2 CT series and 1 are not here, e.g. {gone}; was the download finished?"
    ]


def test_one_patients_folder_and_x2ct_lists(tmp_path: Path) -> None:
    write_series(tmp_path / "LIDC-IDRI-0442/1.2/1.3")
    write_text(
        tmp_path / "LIDC-IDRI-0442/train.txt", "LIDC-IDRI-0442.20000101.5472.1\nLIDC-IDRI-0936.20000101.5169.2.1"
    )
    write_text(tmp_path / "LIDC-IDRI-0442/test.txt", "LIDC-IDRI-0442.20000101.5405.1\n")
    discovery = discover("lidc_idri", tmp_path / "LIDC-IDRI-0442")
    assert [case.patient for case in discovery.cases] == ["LIDC-IDRI-0442"]
    assert discovery.split == {"train": ["LIDC-IDRI-0936"], "val": [], "test": ["LIDC-IDRI-0442"]}
    assert discovery.notes == ["LIDC-IDRI-0442 is in the lists of both train and test; put to test"]
