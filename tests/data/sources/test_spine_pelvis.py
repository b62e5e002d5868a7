from pathlib import Path

import pytest
from tests.data.sources.sources_tree import COLONOG, write_series, write_text, write_volume

from diffux2ct.data.sources import discover
from diffux2ct.errors import UserError

SPINE = {
    "COLONOG": (f"{COLONOG}.0001", "CTC-1018399231"),
    "HNSCC-3DCT-RT": ("HN_P001",),
    "MSD-T10": ("liver_12",),
    "COVID-19": ("volume-covid19-A-0147_ct", "volume-covid19-A-0202_0_ct"),
}


def spine_release(root: Path) -> None:
    """As on Hugging Face: raw_data/volumes/<origin>/<scan>.nii.gz, raw_data/labels/<origin>/<scan>_seg.nii.gz."""
    for origin, scans in SPINE.items():
        for scan in scans:
            write_volume(root / f"raw_data/volumes/{origin}/{scan}.nii.gz")
            write_volume(root / f"raw_data/labels/{origin}/{scan}_seg.nii.gz", label=True)


def test_ctspine1k_release(tmp_path: Path) -> None:
    spine_release(tmp_path)
    write_text(
        tmp_path / "metadata/data_split.txt",
        f"trainset:\r\n{COLONOG}.0001.nii.gz\r\nHN_P001.nii.gz\r\nHN_P002.nii.gz\r\n\r\n"
        "test_public:\r\nliver_12.nii.gz\r\nCTC-1018399231.nii.gz\r\n\r\n"
        "test_private:\r\nvolume-covid19-A-0147_ct.nii.gz\r\nvolume-covid19-A-0202_0_ct.nii.gz\r\n",
    )
    discovery = discover("ctspine1k", tmp_path)
    assert [(case.patient, case.origin) for case in discovery.cases] == [
        (f"{COLONOG}.0001", "COLONOG"),
        ("CTC-1018399231", "COLONOG"),
        ("HN_P001", "HNSCC-3DCT-RT"),
        ("liver_12", "MSD-T10"),
        ("volume-covid19-A-0147", "COVID-19"),
        ("volume-covid19-A-0202", "COVID-19"),
    ]
    for case in discovery.cases:
        assert case.remap == "ctspine1k"
        assert case.labels is not None
        assert case.labels.name == case.path.name.replace(".nii.gz", "_seg.nii.gz")
        assert case.labels.parent.name == case.path.parent.name == case.origin
    assert discovery.split == {
        "train": [f"{COLONOG}.0001", "HN_P001", "HN_P002"],
        "val": ["liver_12", "CTC-1018399231"],
        "test": ["volume-covid19-A-0147", "volume-covid19-A-0202"],
    }
    assert discovery.left_out == []
    assert discovery.notes == [
        "metadata/data_split.txt names 7 patients; 6 of them are here, 0 scans' patients are not named"
    ]


def test_ctspine1k_what_is_left_out(tmp_path: Path) -> None:
    spine_release(tmp_path)
    (tmp_path / "raw_data/labels/MSD-T10/liver_12_seg.nii.gz").unlink()
    (tmp_path / "raw_data/volumes/HNSCC-3DCT-RT/HN_P001.nii.gz").unlink()
    write_volume(tmp_path / "second download/liver_12.nii.gz")
    write_volume(tmp_path / "mine.nii.gz")
    write_series(tmp_path / f"TCIA/{COLONOG}.0001/1/2")
    discovery = discover("ctspine1k", tmp_path, origins=["COLONOG", "HNSCC-3DCT-RT", "MSD-T10"])
    assert [case.patient for case in discovery.cases] == [f"{COLONOG}.0001", "CTC-1018399231", "liver_12"]
    assert dict(discovery.left_out) == {
        f"TCIA/{COLONOG}.0001/1/2": "DICOM; CTSpine1K's scans are the NIfTI files of its release",
        "mine.nii.gz": (
            "not in a folder of CTSpine1K's four collections "
            "(COLONOG, HNSCC-3DCT-RT, MSD-T10, COVID-19) nor named like its scans"
        ),
        "raw_data/labels/HNSCC-3DCT-RT/HN_P001_seg.nii.gz": "labels without their scan",
        "raw_data/volumes/COVID-19/volume-covid19-A-0147_ct.nii.gz": "COVID-19: not in dataset.prepare.origins",
        "raw_data/volumes/COVID-19/volume-covid19-A-0202_0_ct.nii.gz": "COVID-19: not in dataset.prepare.origins",
        "second download/liver_12.nii.gz": "the same name as raw_data/volumes/MSD-T10/liver_12.nii.gz, which is used",
    }
    assert discovery.notes == ["1 scans have no labels, e.g. raw_data/volumes/MSD-T10/liver_12.nii.gz"]


def pelvis_release(root: Path) -> None:
    """Zenodo's archives side by side, each unpacked into its folder, and the CTs of the five other collections."""
    scans = {
        "BTCV/Abdomen/RawData/Training/img/img0001": "CTPelvic1K_dataset1_mask_mappingback/dataset1_img0001",
        "Task10_Colon/imagesTr/colon_001": (
            "CTPelvic1K_dataset3_mask_mappingback/CTPelvic1K_dataset3_mask_mappingback/dataset3_colon_001"
        ),
        "kits19/data/case_00014/imaging": "CTPelvic1K_dataset4_mask_mappingback/dataset4_case_00014",
        "BTCV/Cervix/RawData/Training/img/0507688-Image": "CTPelvic1K_dataset5_mask_mappingback/dataset5_0507688_Image",
        "CTPelvic1K_dataset6_data/dataset6_CLINIC_0001_data": "ipcai2021_dataset6_Anonymized/dataset6_CLINIC_0001",
        "CTPelvic1K_dataset7_data/dataset7_CLINIC_metal_0000_data": "CTPelvic1K_dataset7_mask/CLINIC_metal_0000",
    }
    for scan, mask in scans.items():
        write_volume(root / f"{scan}.nii.gz")
        write_volume(root / f"{mask}_mask_4label.nii.gz", label=True)
    # What else lies in these collections: other organs' labels, and scans without a mask.
    write_volume(root / "kits19/data/case_00014/segmentation.nii.gz", label=True)
    write_volume(root / "Task10_Colon/labelsTr/colon_001.nii.gz", label=True)
    write_volume(root / "kits19/data/case_00015/imaging.nii.gz")
    write_volume(root / "CTPelvic1K_dataset7_data/dataset7_CLINIC_metal_0001_data.nii.gz")
    # COLONOG: two series and a scout of one patient; the mask's name says which series it is of.
    study = root / f"CT COLONOGRAPHY/{COLONOG}.0002/01-01-2000-1-Abdomen24ACRIN-.1240"
    write_series(study / "3.000000-Colosupine  1.0  B30f-.4371", number=3)
    write_series(study / "4.000000-Coloprone  1.0  B30f-.1241", number=4)
    write_series(study / "1.000000-Topo-.1", num=1, number=1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    masks = "CTPelvic1K_dataset2_mask_mappingback"
    write_volume(root / f"{masks}/dataset2_{COLONOG}.0002_4_325_mask_4label.nii.gz", label=True)


def test_ctpelvic1k_release(tmp_path: Path) -> None:
    pelvis_release(tmp_path)
    discovery = discover("ctpelvic1k", tmp_path)
    cases = {case.patient: case for case in discovery.cases}
    assert {patient: case.origin for patient, case in cases.items()} == {
        "ABDOMEN_img0001": "ABDOMEN",
        "CERVIX_0507688": "CERVIX",
        "CLINIC-metal_0000": "CLINIC-metal",
        "CLINIC-metal_0001": "CLINIC-metal",
        "CLINIC_0001": "CLINIC",
        "KITS19_case_00014": "KITS19",
        "MSD_T10_colon_001": "MSD_T10",
    }
    assert all(case.remap == "ctpelvic1k" for case in discovery.cases)
    pairs = {patient: (case.path.parent.name, case.labels and case.labels.name) for patient, case in cases.items()}
    assert pairs == {
        "ABDOMEN_img0001": ("img", "dataset1_img0001_mask_4label.nii.gz"),
        "CERVIX_0507688": ("img", "dataset5_0507688_Image_mask_4label.nii.gz"),
        "CLINIC-metal_0000": ("CTPelvic1K_dataset7_data", "CLINIC_metal_0000_mask_4label.nii.gz"),
        "CLINIC-metal_0001": ("CTPelvic1K_dataset7_data", None),
        "CLINIC_0001": ("CTPelvic1K_dataset6_data", "dataset6_CLINIC_0001_mask_4label.nii.gz"),
        "KITS19_case_00014": ("case_00014", "dataset4_case_00014_mask_4label.nii.gz"),
        "MSD_T10_colon_001": ("imagesTr", "dataset3_colon_001_mask_4label.nii.gz"),
    }
    assert discovery.notes == ["1 scans have no mask"]
    reasons = dict(discovery.left_out)
    mask = f"CTPelvic1K_dataset2_mask_mappingback/dataset2_{COLONOG}.0002_4_325_mask_4label.nii.gz"
    assert "in CTSpine1K too" in reasons[mask]
    assert reasons["kits19/data/case_00015/imaging.nii.gz"] == "CTPelvic1K has no mask of it"
    assert sum(reason == "DICOM that no mask belongs to" for reason in reasons.values()) == 2
    assert len(reasons) == 4


def test_ctpelvic1k_parts_can_be_chosen(tmp_path: Path) -> None:
    pelvis_release(tmp_path)
    discovery = discover("ctpelvic1k", tmp_path, origins=["COLONOG", "CLINIC"])
    colonog, clinic = sorted(discovery.cases, key=lambda case: case.origin, reverse=True)
    assert (colonog.patient, colonog.path.name) == (f"COLONOG_{COLONOG}.0002", "4.000000-Coloprone  1.0  B30f-.1241")
    assert clinic.patient == "CLINIC_0001"
    assert ("kits19/data/case_00015/imaging.nii.gz", "CTPelvic1K has no mask of it") in discovery.left_out
    # Its NIfTI, as CTSpine1K has it, does as well.
    write_volume(tmp_path / f"colon/{COLONOG}.0002.nii.gz")
    cases = discover("ctpelvic1k", tmp_path, origins=["COLONOG"]).cases
    assert [case.path.name for case in cases] == [f"{COLONOG}.0002.nii.gz"]


def test_ctpelvic1k_masks_alone_are_no_data_set(tmp_path: Path) -> None:
    write_volume(tmp_path / "dataset4_case_00014_mask_4label.nii.gz", label=True)
    with pytest.raises(UserError, match="1 CTPelvic1K masks but none of their CTs .*a mask whose CT is not here"):
        discover("ctpelvic1k", tmp_path)


def test_ctspine1k_takes_other_names_in_the_folders_of_its_collections(tmp_path: Path) -> None:
    write_volume(tmp_path / "volumes/COLONOG/some_scan.nii.gz")
    write_volume(tmp_path / "labels/COLONOG/some_scan_seg.nii.gz", label=True)
    (case,) = discover("ctspine1k", tmp_path).cases
    assert (case.origin, case.patient, case.labels is not None) == ("COLONOG", "some_scan", True)
