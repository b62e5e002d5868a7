"""Labels that lie off their CT, and file names that are no text."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.data.preparation.plan import case_names
from diffux2ct.data.preparation.prepare import PrepareSettings, prepare, survey
from diffux2ct.data.preparation.scan_job import ScanJob, ScanResult, guarded
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.tables import unescaped
from diffux2ct.data.sources import RawCase

SETTINGS = PrepareSettings(8, 10.0, camera="parallel")
QUIET = {"workers": 1, "progress": False}


def write(path: Path, labels: bool = False, spacing: tuple[float, ...] = (4.0, 4.0, 5.0), shift: float = 0.0) -> Path:
    """A scan of a bone in air, or the bone's mask."""
    values = np.random.default_rng(len(path.name)).normal(-950, 15, (16, 18, 20)).clip(-1020).astype(np.int16)
    values[4:12, 5:12, 6:14] = 700
    image = sitk.GetImageFromArray((values == 700).astype(np.uint8) * 20 if labels else values)
    image.SetSpacing(spacing)
    image.SetOrigin((shift, 0.0, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def job_of(path: Path, patient: str = "a") -> ScanJob:
    return ScanJob(path.parent / "out", path.parent, RawCase(patient, path), patient, 0, SETTINGS)


def test_an_unexpected_fault_is_the_reason_of_its_scan_and_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    def fail(error: Exception) -> ScanResult:
        def work(job: ScanJob, result: ScanResult) -> None:
            raise error

        return guarded(job_of(tmp_path / "a.mha"), work)

    assert fail(KeyError("x\ny")).reason == "KeyError: 'x\\ny'"
    assert fail(OSError(errno.EIO, "Input/output error")).reason == "Input/output error"
    with pytest.raises(OSError, match="full"):
        fail(OSError(errno.ENOSPC, "full"))


def test_case_names_are_safe_and_differ_on_any_file_system() -> None:
    scans = [RawCase(patient, Path("a")) for patient in ("p 1", "p_1", "P_1", "../x", "p_1_s2", "?")]
    assert case_names(scans) == ["p_1", "p_1_s2", "P_1_s3", "x", "p_1_s2_s2", "case"]


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ({}, True),
        ({"shift": 1.5}, True),  # less than half a voxel: another convention of a voxel's corner
        ({"shift": 40.0}, False),
        ({"spacing": (1.0, 1.0, 1.0)}, False),
        ({"spacing": (4.0, 4.0, 2.5)}, False),
    ],
)
def test_labels_of_the_ct_s_array_in_another_place_are_left_out(tmp_path: Path, change: dict, used: bool) -> None:
    write(tmp_path / "raw/p1.nii.gz")
    write(tmp_path / "raw/p1_seg.nii.gz", labels=True, **change)
    report = prepare("folder", tmp_path / "raw", tmp_path / "out", settings=SETTINGS, labels="ours", **QUIET)
    case = tmp_path / "out/cases/p1"
    assert (case / "labels.npy").is_file() is used
    assert any("labels left out: p1_seg.nii.gz: of its CT's size" in note for note in report.notes) is not used
    if used:
        assert np.load(case / "volume.npy")[np.load(case / "labels.npy") > 0].mean() > 0


def test_labels_of_an_oblique_ct_s_array_in_another_place_are_left_out(tmp_path: Path) -> None:
    """A CT that is resampled onto upright axes has other numbers of voxels than its array."""
    image, turned = sitk.ReadImage(str(write(tmp_path / "ct.nii.gz"))), np.radians(10)
    cos, sin = np.cos(turned), np.sin(turned)
    image.SetDirection([cos, -sin, 0, sin, cos, 0, 0, 0, 1])
    (tmp_path / "raw").mkdir()
    sitk.WriteImage(image, str(tmp_path / "raw/p1.nii.gz"))
    labels = sitk.ReadImage(str(write(tmp_path / "seg.nii.gz", labels=True)))
    for direction, used in ((image.GetDirection(), True), (np.eye(3).ravel().tolist(), False)):
        labels.SetDirection(direction)
        sitk.WriteImage(labels, str(tmp_path / "raw/p1_seg.nii.gz"))
        out = tmp_path / f"out{used}"
        report = prepare("folder", tmp_path / "raw", out, settings=SETTINGS, labels="ours", **QUIET)
        assert (out / "cases/p1/labels.npy").is_file() is used
        assert any("yet its affine places it elsewhere" in note for note in report.notes) is not used


def test_labels_whose_affine_mirrors_their_ct_are_noted(tmp_path: Path) -> None:
    """The same box and another direction: right where a tool has turned the array with it, wrong where it has not."""
    write(tmp_path / "raw/p1.nii.gz")
    labels = sitk.ReadImage(str(write(tmp_path / "seg.nii.gz", labels=True)))
    mirrored = sitk.Flip(labels, (True, False, False))  # moves array and affine
    sitk.WriteImage(mirrored, str(tmp_path / "raw/p1_seg.nii.gz"))
    report = prepare("folder", tmp_path / "raw", tmp_path / "out", settings=SETTINGS, labels="ours", **QUIET)
    case = tmp_path / "out/cases/p1"
    assert np.load(case / "volume.npy")[np.load(case / "labels.npy") > 0].mean() > 0
    assert any("p1_seg.nii.gz: stored as RPS, its CT as LPS" in note for note in report.notes)


def test_labels_on_a_grid_of_their_own_are_placed_by_it(tmp_path: Path) -> None:
    write(tmp_path / "raw/p1.nii.gz")
    image = sitk.ReadImage(str(write(tmp_path / "seg.nii.gz", labels=True)))
    sitk.WriteImage(image[4:16, 3:14, 2:14], str(tmp_path / "raw/p1_seg.nii.gz"))
    prepare("folder", tmp_path / "raw", tmp_path / "out", settings=SETTINGS, labels="ours", **QUIET)
    case = tmp_path / "out/cases/p1"
    assert np.load(case / "volume.npy")[np.load(case / "labels.npy") > 0].mean() > 0


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_a_name_that_is_no_text_loses_no_work(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"raw/good{suffix}")
    name = os.fsdecode(b"M\xfcller") + suffix
    os.rename(write(tmp_path / f"raw/other{suffix}"), tmp_path / "raw" / name)
    rows, dry = survey(tmp_path / "raw", settings=SETTINGS, split={"test": 1}, **QUIET)
    report = prepare("folder", tmp_path / "raw", tmp_path / "out", settings=SETTINGS, split={"test": 1}, **QUIET)
    assert (dry.split, dry.bad, report.bad) == (report.split, [], [])
    assert [row["source"] for row in rows] == [name, f"good{suffix}"]
    root = tmp_path / "out"
    assert json.loads((root / "cases/M_ller/case.json").read_text())["source"] == name
    assert name in unescaped((root / "manifest.csv").read_text(encoding="utf-8"))
    patients = {case.patient for part in ("train", "test") for case in PreparedDataset(root, part).cases}
    assert patients == {os.fsdecode(b"M\xfcller"), "good"}
