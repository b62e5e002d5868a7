"""Every case of the corpus ends in one line naming file, fault and remedy, or is read; none hangs or fills memory."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.data.io.bad_case import scan, write
from tests.data.io.bad_inputs import CASES, BadInput

from diffux2ct.data.io.ct_image import CtImage
from diffux2ct.data.io.volume import read_ct
from diffux2ct.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 20  # a case that reads a FIFO or loops would take for ever
MEGABYTES = 400  # what a case may add to the process; the corpus holds files of a few kB
# Folders in which a search for scans finds nothing that looks like one.
NO_SCAN = {"missing_file", "empty_folder", "folder_named_as_a_file", "dicomdir_only", "dicomdir_itself"}


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_scan(case: BadInput, ct: CtImage) -> None:
    """Wrong names, other formats and compressions: the voxels are those of the plain file, unless a note says more."""
    told = " ".join(ct.meta["notes"])
    assert np.isfinite(ct.hu).all()
    if case.handled:
        assert re.search(case.handled, told)
    elif case.name == "sheared affine":
        assert ct.hu.shape[1] > scan().shape[1]
    else:
        assert not told
        # A negative spacing means that the axis runs the other way.
        np.testing.assert_array_equal(ct.hu, scan()[:, :, :: -1 if case.name == "negative spacing" else 1])
        assert ct.spacing[2] == pytest.approx(2.5 if ct.meta["format"] == "dicom" else 2.0)


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line_or_a_scan(case: BadInput, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = case.make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with no_hang():
        if case.outcome is None:
            check_scan(case, read_ct(path))
        else:
            with pytest.raises(UserError, match=case.outcome) as caught:
                read_ct(path)
            line = str(caught.value)
            assert "\n" not in line
            assert path.name in line  # the file, or a slice below the folder
            assert ";" in line  # fault; remedy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_without_permission(what: str) -> None:
    """Root may read everything, so as root another user is played."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "a.nii.gz"
        if what == "file":
            write(path, scan()).chmod(0)
        else:
            path.mkdir(mode=0)
        own = os.geteuid()
        if own == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match="ermission") as caught:
                read_ct(path)
        finally:
            os.seteuid(own)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def run_python(*arguments: str, limit: int | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process; ``limit`` bytes are the largest file that it may write, which stands for a full disk."""

    def full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
        preexec_fn=None if limit is None else full_disk,
    )


def test_no_room_for_the_decoders_temporary_file(tmp_path: Path) -> None:
    path = next(case for case in CASES if case.name == "lossless jpeg dicom").make(tmp_path)
    code = f"""
from diffux2ct.data.io.volume import read_ct
from diffux2ct.errors import UserError
try:
    read_ct({str(path)!r})
except UserError as error:
    print(error)
"""
    done = run_python("-c", code, limit=100)
    assert done.stderr == ""
    assert re.fullmatch(rf"{re.escape(str(path))}: .* is full; free space there, or set TMPDIR\n", done.stdout)


def test_the_whole_corpus_is_prepared_or_listed(tmp_path: Path) -> None:
    """One command over all cases: the good scans are cases, every other input has its line, nothing half-made stays."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    for case in CASES:
        folder = raw / case.name.replace(" ", "_")
        folder.mkdir(parents=True)
        case.make(folder)
    settings = ["dataset.prepare.size=16", "dataset.prepare.spacing=1", "workers=1", "contact_sheet=false"]
    command = [str(ROOT / "scripts" / "prepare_dataset.py"), "dataset=folder", f"raw={raw}", f"out={out}"]
    done = run_python(*command, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    told: dict[str, str] = {}
    for line in done.stderr.splitlines():
        found = re.match(r"(?:left out|not used): ([^/]+)/[^:]*: (.+)", line)
        if found:
            told[found[1]] = f"{told.get(found[1], '')} {found[2]}"
    written = {json.loads(path.read_text())["source"].split("/")[0] for path in out.glob("cases/*/case.json")}
    for case in CASES:
        folder = case.name.replace(" ", "_")
        if folder in NO_SCAN:
            assert folder not in told, told[folder]
        elif case.outcome is None:
            assert folder in written or "same scan as" in told[folder], folder
        else:
            assert ";" in told[folder] or "not CT" in told[folder] or "not a CT" in told[folder], folder
    for folder in out.glob("cases/*"):
        assert {"case.json", "volume.npy", "frontal.npy", "lateral.npy"} <= {p.name for p in folder.iterdir()}
    assert not [p for p in out.rglob("*") if "partial" in p.name]
