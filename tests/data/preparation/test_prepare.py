import csv
import json
import os
import resource
import signal
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from diffux2ct.data.io.volume import read_ct
from diffux2ct.data.preparation.prepare import PrepareSettings, prepare
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.files.folder_lock import only_writer

SETTINGS = PrepareSettings(size=16, spacing=8.0)


def write_scan(path: Path, seed: int = 0, shape=(30, 36, 48), direction="RAI") -> None:
    """A water cylinder with a bone rod behind its middle, 4 mm voxels."""
    _, y, x = np.indices(shape)
    hu = np.full(shape, -1000, np.int16)
    hu[((y - shape[1] / 2) / (0.4 * shape[1])) ** 2 + ((x - shape[2] / 2) / (0.4 * shape[2])) ** 2 < 1] = 30
    hu[(abs(x - shape[2] // 2) < 3) & (abs(y - 0.7 * shape[1]) < 3)] = 600 + 10 * seed
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 4.0))
    image.SetOrigin((10.0 * seed, -5.0, 70.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, direction), str(path))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for seed in range(5):
        write_scan(tmp_path / "raw" / f"p{seed}.nii.gz", seed)
    return tmp_path / "raw"


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def test_prepared_folder_is_complete(raw: Path, tmp_path: Path) -> None:
    report = prepare("folder", raw, tmp_path / "out", settings=SETTINGS, split={"val": 1, "test": 1}, workers=1)
    assert (report.written, report.found, report.bad) == (5, 0, [])
    assert {part: len(ids) for part, ids in report.split.items()} == {"train": 3, "val": 1, "test": 1}
    with (tmp_path / "out" / "manifest.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    row = rows["p3"]
    assert (row["source"], row["orig_orientation"], row["orig_spacing"], row["spacing"]) == (
        "p3.nii.gz",
        "RAI",
        "4 4 4",
        "8 8 8",
    )
    assert (row["crop"], row["camera"], len(row["sha256"])) == ("centre", "lumbar", 64)
    data = PreparedDataset(tmp_path / "out", report_part(report.split, "p3"))
    case = next(c for c in data.cases if c.case_id == "p3")
    scan = read_ct(raw / "p3.nii.gz")
    # The cube's centre is the scan's, so that reconstructions overlay it.
    middle = [o + 7.5 * s for o, s in zip(case.origin, case.spacing, strict=True)]
    np.testing.assert_allclose(middle, scan.centre, atol=1e-3)
    volume = np.load(case.path / "volume.npy")
    assert volume[8, 10:13, 7:9].mean() > 300  # the rod: posterior, in the middle from left to right
    assert volume[8, 3:6, 7:9].mean() < 100
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (description["format"], description["size"], description["preset"]) == (1, 16, "lumbar")
    assert description["camera"]["sid"] == 1500.0


def report_part(split: dict[str, list[str]], case_id: str) -> str:
    return next(part for part, ids in split.items() if case_id in ids)


@pytest.mark.dist
def test_same_folder_from_many_workers_and_resumed(raw: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    arguments = {"settings": SETTINGS, "crops": 2, "split": {"test": 2}, "progress": False}
    prepare("folder", raw, one, workers=1, **arguments)
    prepare("folder", raw, many, workers=2, **arguments)
    assert {k: v[1] for k, v in snapshot(one).items()} == {k: v[1] for k, v in snapshot(many).items()}
    # What is finished is not touched again; what is gone, or half there, comes back.
    before = snapshot(one)
    for name in ("volume.npy", "frontal.npy", "lateral.npy", "case.json"):
        (one / "cases" / "p2_c01" / name).unlink()
    (one / "cases" / "p2_c01").rmdir()
    (one / "cases" / ".partial-p2_c01").mkdir()
    (one / "cases" / ".partial-p2_c01" / "volume.npy").write_bytes(b"half")
    report = prepare("folder", raw, one, workers=1, **arguments)
    assert (report.written, report.found) == (1, 9)
    after = snapshot(one)
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}
    untouched = [k for k in before if k.startswith("cases/") and "p2_c01" not in k]
    assert [after[k][0] for k in untouched] == [before[k][0] for k in untouched]


@pytest.mark.parametrize("text", ["[]", "abc", "{}", '{"format": 1, "camera": 3}', '{"repeats": {"p0": 3}}', "\xff"])
def test_a_damaged_description_is_written_anew(raw: Path, tmp_path: Path, text: str) -> None:
    """The cases have their settings themselves."""
    run = partial(prepare, "x", raw, tmp_path / "out", settings=SETTINGS, workers=1, progress=False)
    run()
    before = snapshot(tmp_path / "out")
    for name in ("dataset.json", "summary.json"):
        (tmp_path / "out" / name).write_text(text, encoding="latin-1")
    report = run()
    assert (report.written, report.found) == (0, 5)
    assert {name: data for name, (_, data) in snapshot(tmp_path / "out").items()} == {
        n: d for n, (_, d) in before.items()
    }


@pytest.mark.parametrize("change", [{"camera_geometry": "x"}, {"settings": 3}, {"patient": None}, None])
def test_a_damaged_case_is_one_line(raw: Path, tmp_path: Path, change: dict | None) -> None:
    run = partial(prepare, "x", raw, tmp_path / "out", settings=SETTINGS, workers=1, progress=False)
    run()
    path = tmp_path / "out/cases/p1/case.json"
    path.write_text(json.dumps([] if change is None else json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"p1/case.json: damaged; delete the folder"):
        run()


def test_accents_of_two_forms_are_one_name(raw: Path, tmp_path: Path) -> None:
    """A Mac parts ü into u and its dots, in the names of files and of those lists that it writes."""
    composed, parted = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    (raw / "p0.nii.gz").rename(raw / f"{parted}.nii.gz")
    write_scan(raw / f"{composed}_seg.nii.gz")
    for name, split in {"list": {"test": [parted]}, "file": {"file": str(tmp_path / "split.json")}}.items():
        (tmp_path / "split.json").write_text(json.dumps({"test": [composed]}, ensure_ascii=name == "list"))
        report = prepare("x", raw, tmp_path / name, settings=SETTINGS, split=split, workers=1, progress=False)
        assert report.split["test"] == ["M_ller"]
        assert report.not_used == []


def test_a_name_as_long_as_a_file_system_takes_is_prepared(raw: Path, tmp_path: Path) -> None:
    for i, end in enumerate("xy"):
        (raw / f"p{i}.nii.gz").rename(raw / f"{240 * 'p'}{end}.nii.gz")
    report = prepare("x", raw, tmp_path / "out", settings=SETTINGS, workers=1, progress=False)
    assert report.bad == []
    assert {len(name) for name in report.split["train"]} == {2, 200}
    assert len({*report.split["train"]}) == 5


def test_a_folder_goes_on_in_another_locale(raw: Path, tmp_path: Path) -> None:
    (raw / "p0.nii.gz").rename(raw / "Müller😀.nii.gz")
    prepare("x", raw, tmp_path / "out", settings=SETTINGS, workers=1, progress=False)
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    keys = [f"raw={raw}", "out=out", "size=16", "spacing=8", "workers=1"]
    again = run_cli("dataset=folder", *keys, cwd=tmp_path, env=plain)
    assert again.returncode == 0, again.stderr
    assert "0 written" in again.stdout


def test_one_process_at_a_time_prepares_into_a_folder(raw: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "out"), pytest.raises(UserError, match="out: in use by another process"):
        prepare("x", raw, tmp_path / "out", settings=SETTINGS, workers=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_locks_of_a_killed_run_are_cleared_away(raw: Path, tmp_path: Path) -> None:
    run = partial(prepare, "x", raw, tmp_path / "out", settings=SETTINGS, workers=1, progress=False)
    run()
    before = snapshot(tmp_path / "out").keys()
    for name in (".lock-p1", ".lock.host.1.2"):
        (tmp_path / "out/cases" / name).write_text("{}")
    run()
    assert snapshot(tmp_path / "out").keys() == before


def test_changed_settings_are_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("folder", raw, out, settings=SETTINGS, split={"test": 1}, workers=1, progress=False)
    before = snapshot(out)
    for changed in (PrepareSettings(16, 4.0), PrepareSettings(16, 8.0, "parallel"), PrepareSettings(16, 8.0, seed=1)):
        with pytest.raises(UserError, match="prepared with other settings, (spacing|camera|seed)="):
            prepare("folder", raw, out, settings=changed, split={"test": 1}, workers=1, progress=False)
    with pytest.raises(UserError, match="other settings"):
        prepare("folder", raw, out, settings=PrepareSettings(16, 4.0), crops=2, split={"test": 1}, workers=1)
    with pytest.raises(UserError, match=r"other settings, crops=0 \(now 2\), .*; give another out=, or delete"):
        prepare("folder", raw, out, settings=SETTINGS, crops=2, split={"test": 1}, workers=1)
    assert snapshot(out) == before


def test_another_split_of_the_same_cases_is_noted(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = {"settings": SETTINGS, "workers": 1, "progress": False}
    assert not prepare("folder", raw, out, split={"val": ["p1"], "test": ["p0"]}, **arguments).notes
    report = prepare("folder", raw, out, split={"val": ["p1"], "test": ["p2"]}, **arguments)
    assert report.written == 0
    assert report.notes[0].startswith("2 patients changed their part of the split, e.g. p0: models")


def test_a_split_without_validation_or_with_one_training_patient_is_noted(raw: Path, tmp_path: Path) -> None:
    split = {"test": ["p0", "p1", "p2", "p3"]}
    notes = prepare("folder", raw, tmp_path, settings=SETTINGS, split=split, workers=1, progress=False).notes
    assert [note.split(":")[0] for note in notes] == ["no case is in val", "p4 alone is in train"]


def test_bad_scans_are_listed_and_do_not_stop_the_others(raw: Path, tmp_path: Path) -> None:
    (raw / "broken.nii.gz").write_bytes((raw / "p0.nii.gz").read_bytes()[:200])
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8), np.uint8)), str(raw / "grey.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.full((8, 8, 8), -1000, np.int16)), str(raw / "flat.mha"))
    report = prepare(
        "folder", raw, tmp_path / "out", settings=SETTINGS, split={"test": ["p0"]}, workers=1, progress=False
    )
    assert [source for source, _ in report.bad] == ["broken.nii.gz", "flat.mha", "grey.mha"]
    assert "truncated" in report.bad[0][1]
    assert report.written == 5
    assert len(PreparedDataset(tmp_path / "out", "train")) == 4
    for path in raw.glob("p*.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match="none of 3 scans could be used"):
        prepare("folder", raw, tmp_path / "empty", settings=SETTINGS, workers=1, progress=False)
    assert not (tmp_path / "empty" / "dataset.json").exists()


def test_labels_follow_the_crop_and_unreadable_labels_are_left_out(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for seed in range(2):
        write_scan(raw / f"p{seed}.nii.gz", seed)
    ct = sitk.ReadImage(str(raw / "p0.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(sitk.Cast(ct > 300, sitk.sitkUInt8) * 3, "LAS"), str(raw / "p0_seg.nii.gz"))
    (raw / "p1_seg.nii.gz").write_bytes(b"no")
    report = prepare("folder", raw, tmp_path / "out", settings=PrepareSettings(16, 4.0), workers=1, progress=False)
    labels = np.load(tmp_path / "out/cases/p0/labels.npy")
    volume = np.load(tmp_path / "out/cases/p0/volume.npy")
    np.testing.assert_array_equal(labels, (volume > 300) * 3)
    assert not (tmp_path / "out/cases/p1/labels.npy").exists()
    assert any("labels left out: p1_seg.nii.gz" in note for note in report.notes)
    names = json.loads((tmp_path / "out/dataset.json").read_text())["label_names"]
    assert names == {"3": "label_3"}  # a plain folder's numbers are its own


def test_held_out_patients_may_have_another_number_of_crops(raw: Path, tmp_path: Path) -> None:
    split = {"val": ["p4"], "test": ["p0", "p1"]}
    out = tmp_path / "out"
    report = prepare(
        "folder", raw, out, settings=SETTINGS, crops=3, test_crops=1, split=split, workers=1, progress=False
    )
    assert report.split == {
        "train": [f"p{i}_c0{k}" for i in (2, 3) for k in range(3)],
        "val": ["p4_c00"],
        "test": ["p0_c00", "p1_c00"],
    }
    train = PreparedDataset(out, "train")
    assert {case.patient for case in train.cases} == {"p2", "p3"}
    assert len({case.origin for case in train.cases}) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PrepareSettings(camera="pa"), "camera 'pa' is unknown"),
        (PrepareSettings(size=2), "size=2"),
        (PrepareSettings(spacing=-1.0), "spacing=-1.0"),
        (PrepareSettings(window=(10.0, 10.0)), "window="),
    ],
)
def test_wrong_settings_are_told_before_any_work(
    raw: Path, tmp_path: Path, settings: PrepareSettings, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare("folder", raw, tmp_path / "out", settings=settings, workers=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_among_the_scans_is_refused(raw: Path) -> None:
    """The next run would take its cases for scans."""
    with pytest.raises(UserError, match="lies in the folder of the scans, .*; give an out= outside of it"):
        prepare("folder", raw, raw / "out", settings=SETTINGS, workers=1)
    assert not (raw / "out").exists()


def run_cli(*overrides: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess[str]:
    code = "from diffux2ct.cli.prepare import main; main()"
    command = [sys.executable, "-c", code, *overrides]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False, **kwargs)


def test_full_disk_is_one_line_and_leaves_no_half_case(raw: Path, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: volume.npy (24^3 int16, 27 kB) fails in its middle."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_cli(f"raw={raw}", "out=out", "size=24", "spacing=8", "workers=1", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: out: the disk is full; free space and run the same command again")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").rglob("*.npy")) == []
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_command_prepares_lists_bad_scans_and_is_strict_on_request(raw: Path, tmp_path: Path) -> None:
    (raw / "broken.nii.gz").write_bytes(b"\0" * 50)
    arguments = [f"raw={raw}", "out=out", "size=16", "spacing=8", "crops=2", "workers=1", "strict=true"]
    done = run_cli("dataset=folder", *arguments, "dataset.prepare.split.test=[p1,p2]", cwd=tmp_path)
    assert done.returncode == 1
    assert "left out: broken.nii.gz:" in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: 1 scans could not be used (listed above), and strict=true"
    assert "out: 10 cases (train 4, val 2, test 4); 10 written" in done.stdout
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert split["test"] == ["p1_c00", "p1_c01", "p2_c00", "p2_c01"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]  # Hydra leaves nothing behind


def test_wrong_overrides_are_one_line(raw: Path, tmp_path: Path) -> None:
    done = run_cli(f"raw={raw}", "out=out", "spacing=two", cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "error: spacing=two: not a number; give a number above 0, or null",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_real_scans_prepare_upright(shared_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("lidc0314_chest.nii.gz", "ts_example_abdpelv3mm.nii.gz", "ts_example_abdpelv3mm_labels.nii.gz"):
        (raw / name).symlink_to(shared_data / "ct" / name)
    (raw / "series").symlink_to(shared_data / "dicom_series")
    settings = PrepareSettings(32, 8.0)
    report = prepare("folder", raw, tmp_path / "out", settings=settings, split={"test": 1}, workers=1, progress=False)
    assert (report.written, report.bad) == (3, [])
    chest = np.load(tmp_path / "out/cases/lidc0314_chest/volume.npy").astype(float)
    # Head up: the lungs' air lies above the abdomen. The spine, bone, is posterior.
    lung = (chest > -950) & (chest < -600)
    assert lung[12:24].sum() > 2 * lung[:8].sum()
    bone = chest[:, :, 12:20] > 250
    assert bone[:, 16:].sum() > bone[:, :16].sum()
    frontal = np.load(tmp_path / "out/cases/lidc0314_chest/frontal.npy")
    assert 4.0 < frontal.max() < 8.0  # line integrals of a chest: about 25 to 30 cm of water
    assert frontal[16, 13:19].mean() > frontal[16, 5:11].mean()  # mediastinum over right lung
    labels = np.load(tmp_path / "out/cases/ts_example_abdpelv3mm/labels.npy")
    assert labels.any()


@pytest.mark.real
def test_left_is_left_in_a_prepared_pelvis(shared_data: Path, tmp_path: Path) -> None:
    """colonog_0243 has its hips labelled right and left; x runs to the patient's left, z up, y to the back."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for kind in ("ct", "label"):
        name = f"colonog_0243_{kind}.nii.gz"
        (raw / name).symlink_to(shared_data / "labelled_8bit" / name)
    settings = PrepareSettings(64, 5.0, remove_couch=True)
    # Air, fat and muscle are 5, 55 and 65 in its grey levels.
    options = {"rescale": (17.508, -1076.2), "labels": "ctpelvic1k", "workers": 1, "progress": False}
    report = prepare("folder", raw, tmp_path / "out", settings=settings, **options)
    assert report.bad == []
    labels = np.load(tmp_path / "out/cases/colonog_0243_ct/labels.npy")
    names = json.loads((tmp_path / "out/dataset.json").read_text())["label_names"]
    middle = {name: np.argwhere(labels == int(value)).mean(0) for value, name in names.items()}
    assert set(middle) == {"sacrum", "left_hip", "right_hip"}
    assert middle["right_hip"][2] + 10 < middle["sacrum"][2] < middle["left_hip"][2] - 10
    volume = np.load(tmp_path / "out/cases/colonog_0243_ct/volume.npy")
    assert volume[labels > 0].mean() > 150  # the labels lie on bone
    frontal = np.load(tmp_path / "out/cases/colonog_0243_ct/frontal.npy")
    assert frontal.shape == (64, 64)
