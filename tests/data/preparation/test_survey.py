"""What is used and what is left out: dry run, the same scan under two names, published splits, summaries."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tests.data.io.dicom.dicom_files import hu_volume, write_series

from diffux2ct.cli.prepare import main
from diffux2ct.data.labels import LABELS
from diffux2ct.data.preparation.prepare import PrepareSettings, prepare, survey
from diffux2ct.data.preparation.report import by_reason
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError

SETTINGS = PrepareSettings(16, 8.0)
QUIET = {"workers": 1, "progress": False}


def scan(path: Path, seed: int, orientation: str = "LPS") -> None:
    hu = np.full((24, 30, 36), -1000, np.int16)
    hu[2:-2, 6:24, 6:30] = np.random.default_rng(seed).normal(40, 20, (20, 18, 24))
    hu[:, 18:21, 16:20] = 500 + seed
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 5.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for seed in range(4):
        scan(tmp_path / "raw" / f"p{seed}.nii.gz", seed)
    return tmp_path / "raw"


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_scan_that_two_patients_have_is_used_once(raw: Path, tmp_path: Path) -> None:
    # Another format, another stored orientation: the bytes differ, the scan does not.
    scan(raw / "again.mha", 1, "RAI")
    out = tmp_path / "out"
    report = prepare("folder", raw, out, settings=SETTINGS, split={"test": ["p1"]}, **QUIET)
    assert report.not_used == [("p1.nii.gz", "same scan as again.mha of patient again, which is used")]
    assert sorted(p.name for p in (out / "cases").iterdir()) == ["again", "p0", "p2", "p3"]
    assert report.split["test"] == []
    # The next run knows, and does not prepare it again only to drop it.
    before = files_of(out)
    again = prepare("folder", raw, out, settings=SETTINGS, split={"test": ["p1"]}, **QUIET)
    assert (again.written, again.found, again.not_used) == (0, 4, report.not_used)
    assert files_of(out) == before
    # With the other gone, it is used.
    (raw / "again.mha").unlink()
    last = prepare("folder", raw, out, settings=SETTINGS, split={"test": ["p1"]}, **QUIET)
    assert (last.written, last.not_used, last.split["test"]) == (1, [], ["p1"])


def test_a_scan_that_was_another_patients_is_looked_at_again_when_it_changed(raw: Path, tmp_path: Path) -> None:
    scan(raw / "q.mha", 1)
    out = tmp_path / "out"
    report = prepare("folder", raw, out, settings=SETTINGS, **QUIET)
    assert [source for source, _ in report.not_used] == ["q.mha"]
    scan(raw / "q.mha", 9)
    report = prepare("folder", raw, out, settings=SETTINGS, **QUIET)
    assert (report.written, report.found, report.not_used) == (1, 4, [])
    assert json.loads((out / "summary.json").read_text())["repeats"] == {}


def test_a_case_of_a_scan_that_changed_is_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("folder", raw, out, settings=SETTINGS, crops=2, **QUIET)
    before = files_of(out)
    os.utime(raw / "p1.nii.gz")  # a new time, the same bytes
    (raw / "p3.nii.gz").rename(raw / "p3")
    (raw / "p3").rename(raw / "p3.nii.gz")
    assert prepare("folder", raw, out, settings=SETTINGS, crops=2, **QUIET).found == 8
    assert files_of(out) == before
    kept = (raw / "p1.nii.gz").stat()
    scan(tmp_path / "other.nii.gz", 9)
    os.utime(tmp_path / "other.nii.gz", ns=(kept.st_atime_ns, kept.st_mtime_ns - 10**12))  # as a download may be
    (tmp_path / "other.nii.gz").rename(raw / "p1.nii.gz")
    told = r"case p1_c00, p1_c01 was made from another content of .*p1.nii.gz; give another out=, or delete these"
    with pytest.raises(UserError, match=told):
        prepare("folder", raw, out, settings=SETTINGS, crops=2, **QUIET)
    assert files_of(out) == before
    for case_id in ("p1_c00", "p1_c01"):
        shutil.rmtree(out / "cases" / case_id)
    assert prepare("folder", raw, out, settings=SETTINGS, crops=2, **QUIET).written == 2


def test_a_series_is_the_same_whatever_else_is_put_into_its_folder(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "raw" / "p", hu_volume((20, 16, 20)))
    out = tmp_path / "out"
    prepare("folder", tmp_path / "raw", out, settings=SETTINGS, **QUIET)
    (tmp_path / "raw" / "p" / "index.bin").write_bytes(b"a viewer's")
    assert prepare("folder", tmp_path / "raw", out, settings=SETTINGS, **QUIET).found == 1
    paths[-1].unlink()
    with pytest.raises(UserError, match="was made from another content"):
        prepare("folder", tmp_path / "raw", out, settings=SETTINGS, **QUIET)


def test_a_camera_that_changed_behind_its_name_is_refused(raw: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", PrepareSettings(16, 8.0, "x2ct")
    prepare("folder", raw, out, settings=settings, **QUIET)
    for path, key in ((out / "dataset.json", "camera"), (out / "cases/p2/case.json", "camera_geometry")):
        whole = path.read_text()
        value = json.loads(whole)
        del value[key]["reverse"]  # as before the preset was reversed
        path.write_text(json.dumps(value))
        what = "out" if key == "camera" else "case p2"
        with pytest.raises(UserError, match=f"{what} was prepared .* camera.reverse=False .now True.; give"):
            prepare("folder", raw, out, settings=settings, **QUIET)
        # X-rays that were imported have the camera that they came with.
        path.write_text(json.dumps(value | {"xrays": "stored"}))
        assert prepare("folder", raw, out, settings=settings, **QUIET).found == 4
        path.write_text(whole)


def test_dry_run_knows_scans_that_take_no_implants(raw: Path, tmp_path: Path) -> None:
    labels = np.zeros((24, 30, 36), np.uint8)
    labels[4:8, 18:21, 16:20], labels[9:13, 18:21, 16:20] = (LABELS["L4"], LABELS["L3"])  # no canal, no pedicles
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((4.0, 4.0, 5.0))
    sitk.WriteImage(image, str(raw / "p0_seg.nii.gz"))
    for seed in (1, 2, 3):
        (raw / f"p{seed}.nii.gz").unlink()
    settings = PrepareSettings(16, 8.0, instrument={"levels": [1, 1]})
    rows, dry = survey(raw, settings=settings, labels="ours", **QUIET)
    with pytest.raises(UserError, match="none of 1 scans could be used") as error:
        prepare("folder", raw, tmp_path / "out", settings=settings, labels="ours", **QUIET)
    assert rows == []
    assert [source for source, _ in dry.bad] == ["p0.nii.gz"]
    assert str(error.value).endswith(f"p0.nii.gz: {dry.bad[0][1]}")


def test_a_patient_s_own_scan_twice_is_kept_and_told(raw: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        (raw / f"q{i}").mkdir()
        scan(raw / f"q{i}" / "ct.nii.gz", 7 + i)
    scan(raw / "q1" / "ct.mha", 8)
    report = prepare("folder", raw, tmp_path / "out", settings=SETTINGS, **QUIET)
    _, dry = survey(raw, settings=SETTINGS, **QUIET)
    assert report.not_used == dry.not_used == []
    if sum(case.startswith("q1") for ids in report.split.values() for case in ids) == 2:
        assert any("of patient q1 are the same scan" in note for note in report.notes)


def test_dry_run_tells_what_the_run_will_do_and_writes_nothing(raw: Path, tmp_path: Path) -> None:
    (raw / "broken.nii.gz").write_bytes((raw / "p0.nii.gz").read_bytes()[:300])
    scan(raw / "z.mha", 2)
    labels = sitk.GetImageFromArray(np.ones((24, 30, 36), np.uint8))
    labels.CopyInformation(sitk.ReadImage(str(raw / "p3.nii.gz")))
    sitk.WriteImage(labels, str(raw / "p3_seg.nii.gz"))
    before = files_of(tmp_path)
    rows, dry = survey(raw, settings=SETTINGS, split={"test": 1}, **QUIET)
    assert files_of(tmp_path) == before
    report = prepare("folder", raw, tmp_path / "out", settings=SETTINGS, split={"test": 1}, **QUIET)
    assert (dry.split, dry.bad, dry.not_used) == (report.split, report.bad, report.not_used)
    assert [row["case"] for row in rows] == ["p0", "p1", "p2", "p3"]
    row = rows[3]
    assert (row["source"], row["size"], row["spacing"], row["labels"]) == ("p3.nii.gz", [36, 30, 24], [4, 4, 5], True)
    assert row["split"] in ("train", "test")


def test_split_can_be_published_and_used_again(raw: Path, tmp_path: Path) -> None:
    first = prepare("folder", raw, tmp_path / "a", settings=SETTINGS, split={"test": 2, "val": 1}, **QUIET)
    published = tmp_path / "a" / "split_patients.json"
    value = json.loads(published.read_text())
    assert (value["name"], value["seed"], len(value["test"])) == ("folder", 0, 2)
    other = PrepareSettings(16, 8.0, seed=5)
    second = prepare("folder", raw, tmp_path / "b", settings=other, split={"file": str(published)}, **QUIET)
    assert second.split == first.split


def test_summary_tells_of_cases_spacings_and_reasons(raw: Path, tmp_path: Path) -> None:
    (raw / "broken.nii.gz").write_bytes(b"\0" * 400)
    (raw / "empty.nii.gz").write_bytes(b"")
    report = prepare("set", raw, tmp_path / "out", settings=SETTINGS, crops=2, split={"test": 1}, **QUIET)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["cases"] == {"train": 6, "val": 0, "test": 2}
    assert summary["patients"] == {"train": 3, "val": 0, "test": 1}
    assert (summary["scans"], summary["orig_spacing"]["z"]) == (4, [5.0, 5.0])
    assert summary["hu_range"][0] == -1024
    assert 400 < summary["hu_range"][1] < 520
    assert [source for source, _ in summary["bad"]] == ["broken.nii.gz", "empty.nii.gz"]
    assert sum(summary["left_out_by_reason"].values()) == 2
    text = (tmp_path / "out/summary.txt").read_text()
    assert "set: 8 cases from 4 scans" in text
    assert report.summary == summary


def test_reasons_are_counted_without_names_and_numbers() -> None:
    left_out = [
        ("a", "truncated, 5 of 9 bytes; fetch it"),
        ("b", "truncated, 7 of 9 bytes; fetch it"),
        ("c", "/x/y.dcm: no CT"),
    ]
    assert by_reason(left_out) == {"truncated, # of # bytes": 2, "... no CT": 1}


def test_command_dry_run(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "grey.mha").write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["prepare", f"raw={raw}", "--dry-run", "workers=1", "strict=true"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: 1 scans could not be used"):
        main()
    told = capsys.readouterr()
    assert "dry run: 4 scans would be used" in told.out
    assert "left out: grey.mha:" in told.err
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_cubes_that_are_mostly_padding_are_warned_of_and_left_out_on_request(raw: Path, tmp_path: Path) -> None:
    whole = sitk.ReadImage(str(raw / "p0.nii.gz"))
    sitk.WriteImage(whole[:, :, 8:16], str(raw / "slab.nii.gz"))  # 40 mm of 128
    warning = "1 of 5 cubes are mostly padding: the scan fills 29% of slab; dataset.prepare.min_filled=0.5"
    report = prepare("folder", raw, tmp_path / "out", settings=SETTINGS, **QUIET)
    _, dry = survey(raw, settings=SETTINGS, **QUIET)
    for notes in (report.notes, dry.notes, report.summary["notes"]):
        assert [note for note in notes if warning in note]
    assert json.loads((tmp_path / "out/cases/slab/case.json").read_text())["filled"] == 0.293
    strict = PrepareSettings(16, 8.0, min_filled=0.5)
    for found in (
        survey(raw, settings=strict, **QUIET)[1],
        prepare("f", raw, tmp_path / "b", settings=strict, **QUIET),
    ):
        assert found.bad == []
        assert found.not_used == [
            ("slab.nii.gz", "144 x 120 x 40 mm fill 29% of the cube of 128 mm, less than min_filled=0.5")
        ]
        assert not any("padding" in note for note in found.notes)
    assert not (tmp_path / "b/cases/slab").exists()
    with pytest.raises(UserError, match=r"none of 5 scans .*less than min_filled=1"):
        prepare("f", raw, tmp_path / "c", settings=PrepareSettings(16, 8.0, min_filled=1.0), **QUIET)
    with pytest.raises(UserError, match="min_filled=2: give a share"):
        survey(raw, settings=PrepareSettings(min_filled=2), **QUIET)


def test_a_mask_is_called_a_mask_and_a_contradicting_scheme_is_refused(raw: Path, tmp_path: Path) -> None:
    labels = np.zeros((24, 30, 36), np.uint8)
    labels[8:12, 18:21, 16:20] = 1

    def write(array: np.ndarray) -> None:
        image = sitk.GetImageFromArray(array)
        image.CopyInformation(sitk.ReadImage(str(raw / "p0.nii.gz")))
        sitk.WriteImage(image, str(raw / "p0_seg.nii.gz"))

    write(labels)
    for number, scheme in enumerate((None, "ours", "ctspine1k")):
        out = tmp_path / str(number)
        report = prepare("folder", raw, out, settings=SETTINGS, labels=scheme, **QUIET)
        assert json.loads((out / "dataset.json").read_text())["label_names"] == {"1": "mask"}
        assert any("taken for a mask, not for vertebra C1" in note for note in report.notes) == (scheme is not None)
        with pytest.raises(UserError, match="no case has a label of C1"):
            PreparedDataset(out, "train", window=SETTINGS.window, labels=["C1"])
    # Organs as another program numbers them: a spleen is no C1.
    labels[4:8, 18:21, 4:8], labels[4:8, 18:21, 30:34] = 2, 3
    write(labels)
    _, report = survey(raw, settings=SETTINGS, labels="ours", **QUIET)
    assert len(report.bad) == 1
    assert report.bad[0][1].startswith("labels=ours contradicts the anatomy in p0_seg.nii.gz: C2 and C3 lie 104 mm")
    assert "choose another of ours, ctspine1k, ctpelvic1k, totalsegmentator, or labels=null" in report.bad[0][1]
    _, report = survey(raw, settings=SETTINGS, labels="totalsegmentator", **QUIET)
    assert "names none of the numbers in p0_seg.nii.gz" in report.bad[0][1]
    assert survey(raw, settings=SETTINGS, **QUIET)[1].bad == []
