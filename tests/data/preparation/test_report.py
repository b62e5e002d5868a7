"""What a preparation says of itself: counts, warnings, paths; and labels that changed since."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.cli.prepare import main
from diffux2ct.data.labels import LABELS
from diffux2ct.data.preparation.prepare import PrepareSettings, prepare, survey
from diffux2ct.errors import UserError

SETTINGS = PrepareSettings(8, 16.0)
QUIET = {"workers": 1, "progress": False}


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((8.0, 8.0, 8.0))
    sitk.WriteImage(image, str(path))


def scan(path: Path, seed: int) -> None:
    hu = np.full((12, 14, 16), -1000, np.int16)
    hu[2:-2, 3:11, 3:13] = np.random.default_rng(seed).normal(40, 20, (8, 8, 10))
    write(path, hu)


def labels(path: Path, *sides: str) -> None:
    """A label map whose hips lie, from the patient's right to the left, in this order."""
    values = np.zeros((12, 14, 16), np.uint8)
    for side, x in zip(sides, (4, 11), strict=True):
        values[4:8, 5:9, x : x + 2] = {"right": 3, "left": 2}[side]
    write(path, values)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for seed in range(3):
        scan(tmp_path / "raw" / f"p{seed}.nii.gz", seed)
    return tmp_path / "raw"


def test_a_duplicate_is_not_counted_as_written(raw: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    scan(raw / "q.mha", 1)
    arguments = [f"raw={raw}", f"out={tmp_path / 'out'}", "size=8", "spacing=16", "crops=2", "workers=1"]
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments, "contact_sheet=false"])
    main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "6 cases (train 2, val 2, test 2); 6 written in" in last
    assert last.endswith("0 were there; 1 left out")
    main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "; 0 written in" in last
    assert last.endswith("6 were there; 1 left out")
    # Found finished, and then another patient's: gone, so not counted either.
    scan(raw / "a.mha", 2)
    report = prepare("folder", raw, tmp_path / "out", settings=SETTINGS, crops=2, **QUIET)
    assert [source for source, _ in report.not_used] == ["p2.nii.gz", "q.mha"]
    assert (report.written, report.found) == (2, 4)
    assert sum(map(len, report.split.values())) == 6


def test_a_part_without_cases_is_told(raw: Path, tmp_path: Path) -> None:
    for split, part in (({"test": 0}, "test"), ({"test": 1.0}, "train")):
        report = prepare("folder", raw, tmp_path / part, settings=SETTINGS, split=split, **QUIET)
        _, dry = survey(raw, settings=SETTINGS, split=split, **QUIET)
        told = [note for note in report.notes if note.startswith("no case is in ")]
        assert f"no case is in {part}" in [note.split(":")[0] for note in told]
        assert dry.notes == report.notes
    report = prepare("folder", raw, tmp_path / "whole", settings=SETTINGS, split={"test": 1}, **QUIET)
    assert [note for note in report.notes if not note.startswith("no case is in val")] == []


def test_one_scan_of_a_public_set_is_listed(tmp_path: Path, monkeypatch, capsys) -> None:
    scan(tmp_path / "raw/dataset6_CLINIC_0001_data.nii.gz", 0)
    monkeypatch.setattr(
        sys, "argv", ["prepare", "dataset=ctpelvic1k", f"raw={tmp_path / 'raw'}", "--dry-run", "workers=1"]
    )
    main()
    told = capsys.readouterr()
    assert "dry run: 1 scans would be used (cases: train 1, val 0, test 0)" in told.out
    assert "no case is in test" in told.err


@pytest.mark.parametrize("inside", ["raw", "raw/out", "raw/deep/er"])
def test_out_must_not_lie_among_the_scans(raw: Path, tmp_path: Path, inside: str) -> None:
    before = sorted(raw.rglob("*"))
    with pytest.raises(UserError, match=r"lies in the folder of the scans, raw=.*; give an out= outside") as error:
        prepare("folder", raw, tmp_path / inside, settings=SETTINGS, **QUIET)
    assert "\n" not in str(error.value)
    assert sorted(raw.rglob("*")) == before
    # The other way round is a usual place for scans.
    assert prepare("folder", raw, tmp_path, settings=SETTINGS, **QUIET).written == 3


def test_notes_and_reasons_tell_paths_below_raw_only(raw: Path, tmp_path: Path) -> None:
    labels(raw / "sub" / "p1_seg.nii.gz", "left", "right")
    (raw / "p2_seg.nii.gz").write_bytes(b"no")
    (raw / "sub" / "cut.nii.gz").write_bytes(b"no")
    settings = PrepareSettings(8, 16.0, remove_couch=True)
    report = prepare("folder", raw, tmp_path / "out", settings=settings, labels="ctpelvic1k", **QUIET)
    hips, left_out = (
        next(note for note in report.notes if what in note) for what in ("hip exchanged", "labels left out")
    )
    assert hips.startswith(f"{Path('sub/p1_seg.nii.gz')}: left and right hip exchanged")
    assert left_out.startswith("labels left out: p2_seg.nii.gz: ")
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    prepared = np.load(tmp_path / "out/cases/p1/labels.npy")
    middle = {name: np.argwhere(prepared == LABELS[name])[:, 2].mean() for name in ("left_hip", "right_hip")}
    assert middle["left_hip"] > middle["right_hip"] + 2


@pytest.mark.parametrize("change", ["other", "gone", "new"])
def test_cases_with_other_labels_than_now_are_refused(raw: Path, tmp_path: Path, change: str) -> None:
    path, out = raw / "p1_seg.nii.gz", tmp_path / "out"
    if change != "new":
        labels(path, "right", "left")
    options = {"settings": SETTINGS, **QUIET}
    prepare("folder", raw, out, **options)
    assert prepare("folder", raw, out, **options).found == 3
    told = {
        "other": r"case p1 was made from another content of .*p1_seg.nii.gz; give another out=, or delete the case",
        "gone": r"case p1 was made with labels of .*p1.nii.gz that are not here; give",
        "new": r"case p1 was made without the labels .*p1_seg.nii.gz; give",
    }
    path.unlink(missing_ok=True)
    if change != "gone":
        labels(path, "left", "right")
    with pytest.raises(UserError, match=told[change]):
        prepare("folder", raw, out, **options)
    # Cases of before labels were watched do not tell.
    for case in out.glob("cases/*/case.json"):
        record = json.loads(case.read_text())
        del record["labels_sha256"]
        case.write_text(json.dumps(record))
    assert prepare("folder", raw, out, **options).found == 3
