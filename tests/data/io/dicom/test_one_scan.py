"""Slices of two scans under one series: one of them, or a refusal, never both."""

from pathlib import Path

import numpy as np
import pytest
from tests.data.io.dicom.dicom_files import hu_volume, list_series, refused, write_enhanced, write_series

from diffux2ct.data.io.volume import read_ct

ALONG = 2.5 * np.arange(12)
FIRST, SECOND = (hu_volume((12, 9, 8), seed=seed) for seed in (1, 2))


@pytest.mark.parametrize(
    "tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "ConvolutionKernel", "StudyInstanceUID"]
)
@pytest.mark.parametrize(("offset", "count"), [(1.0, 12), (1.25, 12), (0.2, 12), (0.0, 12), (11.25, 4)])
def test_an_acquisition_between_another_is_left_out(tmp_path: Path, tag: str, offset: float, count: int) -> None:
    write_series(
        tmp_path,
        np.concatenate([FIRST, SECOND[:count]]),
        along=[*ALONG, *(ALONG[:count] + offset)],
        change=lambda i, dataset: setattr(dataset, tag, "1" if i < 12 else "2"),
    )
    ct = read_ct(tmp_path)
    np.testing.assert_array_equal(ct.hu, FIRST)
    assert f"{count} slices of others left out" in ct.meta["notes"][0]


def test_acquisitions_end_to_end_are_one_scan(tmp_path: Path) -> None:
    """Step and shoot, with a number for each block or for each slice; blocks may share slices where they meet."""
    for name, per_number in (("blocks", 4), ("slices", 1)):
        write_series(
            tmp_path / name,
            FIRST,
            along=ALONG,
            change=lambda i, dataset, n=per_number: setattr(dataset, "AcquisitionNumber", 1 + i // n),
        )
        ct = read_ct(tmp_path / name)
        np.testing.assert_array_equal(ct.hu, FIRST)
        assert ct.meta["notes"] == []
    write_series(
        tmp_path / "shared",
        FIRST[[0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11]],
        along=ALONG[[0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11]],
        change=lambda i, dataset: setattr(dataset, "AcquisitionNumber", 1 + i // 6),
    )
    np.testing.assert_array_equal(read_ct(tmp_path / "shared").hu, FIRST)


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientBirthDate"])
def test_scans_of_two_people_or_studies_are_not_joined_end_to_end(tmp_path: Path, tag: str) -> None:
    values = ("19500101", "19700101") if tag == "PatientBirthDate" else ("1.2", "1.3")
    write_series(
        tmp_path / "two", FIRST, along=ALONG, change=lambda i, dataset: setattr(dataset, tag, values[int(i >= 7)])
    )
    ct = read_ct(tmp_path / "two")
    np.testing.assert_array_equal(ct.hu, FIRST[:7])
    assert "5 slices of others left out" in ct.meta["notes"][0]
    # An anonymiser's value for each slice tells nothing apart.
    write_series(
        tmp_path / "each", FIRST, along=ALONG, change=lambda i, dataset: setattr(dataset, tag, f"{19500101 + i}")
    )
    np.testing.assert_array_equal(read_ct(tmp_path / "each").hu, FIRST)


@pytest.mark.parametrize("offset", [0.0, 1.25])
def test_undeclared_passes_show_in_their_instance_numbers(tmp_path: Path, offset: float) -> None:
    write_series(tmp_path, np.concatenate([FIRST, SECOND]), along=[*ALONG, *(ALONG + offset)])
    ct = read_ct(tmp_path)
    np.testing.assert_array_equal(ct.hu, FIRST)
    assert "the fullest taken, 12 slices of others left out" in ct.meta["notes"][0]


def test_one_slice_sent_again_fills_its_place(tmp_path: Path) -> None:
    write_series(
        tmp_path, FIRST, along=ALONG, change=lambda i, dataset: setattr(dataset, "InstanceNumber", 99 if i == 3 else i)
    )
    np.testing.assert_array_equal(read_ct(tmp_path).hu, FIRST)


def test_scans_that_cannot_be_separated_are_refused(tmp_path: Path) -> None:
    both, places = np.concatenate([FIRST, SECOND]), [*ALONG, *(ALONG + 1.25)]
    write_series(
        tmp_path / "twice", both, along=places, change=lambda i, dataset: setattr(dataset, "InstanceNumber", 1 + i % 12)
    )
    refused(tmp_path / "twice", "two scans in one series .InstanceNumbers repeat.")
    write_series(tmp_path / "unnumbered", both, along=[*ALONG, *ALONG], InstanceNumber=None)
    refused(tmp_path / "unnumbered", "two scans in one series .positions repeat.")
    in_turns = np.argsort([*ALONG, *(ALONG + 1.0)], kind="stable")
    write_series(tmp_path / "turns", both[in_turns], along=np.array([*ALONG, *(ALONG + 1.0)])[in_turns])
    refused(tmp_path / "turns", "gaps of 1.0 and 1.5 mm take turns")


def test_one_of_two_stacks_of_an_enhanced_file_is_taken(tmp_path: Path) -> None:
    def stacks(dataset) -> None:
        for i, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item.FrameContentSequence = [type(item)()]
            item.FrameContentSequence[0].StackID = "1" if i % 2 == 0 else "2"

    in_turns = np.stack([FIRST, SECOND], axis=1).reshape(24, 9, 8)
    positions = [(-10.0, -20.0, z) for place in ALONG for z in (place, place + 1.25)]
    path = write_enhanced(tmp_path / "e.dcm", (in_turns + 1024).astype(np.uint16), positions, change=stacks)
    np.testing.assert_array_equal(read_ct(path).hu, FIRST)


def test_two_patients_with_one_uid_are_two_series(tmp_path: Path) -> None:
    write_series(tmp_path, FIRST, along=ALONG, PatientID="A")
    paths = write_series(tmp_path / "b", SECOND[:8], along=ALONG[:8] + 1, PatientID="B")
    for path in paths:
        path.rename(tmp_path / f"b_{path.name}")
    assert [(s.patient, s.num_slices) for s in list_series(tmp_path)] == [("A", 12), ("B", 8)]
    ct = read_ct(tmp_path)
    np.testing.assert_array_equal(ct.hu, FIRST)
    assert "8 slices) of another patient skipped" in ct.meta["notes"][0]
    np.testing.assert_array_equal(read_ct(tmp_path, patient="B").hu, SECOND[:8])
    np.testing.assert_array_equal(read_ct(next(tmp_path.glob("b_*"))).hu, SECOND[:8])


def test_a_series_in_several_folders_is_whole(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "all", FIRST, along=ALONG)
    folders = [tmp_path / "DIR0", tmp_path / "DIR1"]
    for i, path in enumerate(paths):
        folders[i // 6].mkdir(exist_ok=True)
        path.rename(folders[i // 6] / path.name)
    np.testing.assert_array_equal(read_ct(tmp_path, "1.2.10", folders=folders).hu, FIRST)
