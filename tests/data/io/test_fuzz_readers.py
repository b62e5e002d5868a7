"""Damaged bytes: whatever they are, ``read_ct`` returns a finite scan or raises one line. No crash, hang or blow-up.

The reader runs in a process of its own with a limit on its memory, so that a crash of a C library is a failed example
and not the end of the test run.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.io.bad_case import metaimage, nifti, scan, write
from tests.data.io.dicom.dicom_files import compress, hu_volume, write_enhanced, write_series

SECONDS = 10.0
WORKER = """
import contextlib, json, resource, sys, traceback
import numpy as np
from pathlib import Path
from diffux2ct.data.io.ct_image import content_hash
from diffux2ct.data.io.volume import read_ct, read_labels
from diffux2ct.errors import UserError
read_ct(Path(sys.argv[1]))  # with all libraries loaded, what is in use is known
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 1_000_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print("ready", flush=True)
for line in sys.stdin:
    path = json.loads(line)
    try:
        if not Path(path).is_dir():
            with contextlib.suppress(UserError):
                read_labels(path)
        ct = read_ct(path)
        content_hash(ct)
        sound = np.isfinite(ct.hu).all() and ct.hu.ndim == 3 and min(ct.spacing) > 0 and np.isfinite(ct.origin).all()
        answer = ["scan" if sound else "bad scan", str((ct.hu.shape, ct.spacing, ct.origin))]
    except UserError as error:
        answer = ["refused", str(error)]
    except BaseException:
        answer = ["exception", traceback.format_exc()]
    print(json.dumps(answer), flush=True)
"""


class Reader:
    """``read_ct`` in a process that may die; a new one is started then."""

    def __init__(self, good: Path) -> None:
        self.good = good
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> tuple[str, str]:
        """(scan | refused | exception | crash | hang, what was said)."""
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        process.stdin.flush()
        line = self._line(process)
        if line is None:
            self.stop()
            return "hang", f"not done after {SECONDS} s"
        if not line:
            self.stop()
            return "crash", f"exit status {process.returncode}"
        kind, text = json.loads(line)
        return kind, text

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            command = [sys.executable, "-c", WORKER, str(self.good)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == b"ready\n"
        return self.process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """A line of the answer; b"" if the process has died, None if it does not answer."""
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            return None
        return process.stdout.readline()


@dataclass(frozen=True)
class Target:
    """A valid file to damage: ``file`` among what lies in ``folder``; ``read`` is what ``read_ct`` is given."""

    data: bytes
    file: Path
    read: Path


def _one(make: Callable[[Path], Path]) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        path = make(folder)
        return Target(path.read_bytes(), path, path)

    return target


def _series(change: Callable | None = None, **tags: object) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        path = write_series(folder / "s", scan()[:3], change=change, **tags)[1]
        return Target(path.read_bytes(), path, folder / "s")

    return target


def _enhanced(folder: Path) -> Path:
    stored = (hu_volume((3, 9, 10)) + 1024).astype("uint16")
    return write_enhanced(folder / "e.dcm", stored, [(0.0, 0.0, 2.5 * i) for i in range(3)])


TARGETS: dict[str, Callable[[Path], Target]] = {
    "nii": _one(lambda folder: nifti(folder / "a")),
    "nii.gz": _one(lambda folder: write(folder / "a.nii.gz", scan())),
    "mha": _one(lambda folder: metaimage(folder / "a.mha", {})),
    "nrrd": _one(lambda folder: write(folder / "a.nrrd", scan())),
    "dicom": _series(),
    "dicom implicit": _series(syntax="1.2.840.10008.1.2"),
    "dicom jpeg": _series(change=lambda i, dataset: compress(dataset, "JPEG")),
    "dicom jpeg2000": _series(change=lambda i, dataset: compress(dataset, "JPEG2000")),
    "dicom rle": _series(change=lambda i, dataset: compress(dataset, "RLE")),
    "dicom enhanced": _one(_enhanced),
}

# Values at which sizes, counts and types go wrong, and the text of numbers that headers hold.
EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x7f\xff", b"\0\0\xc0\x7f", b"\0\0\x80\x7f"]
WORDS = [b"-1", b"0", b"nan", b"inf", b"1e300", b"99999999", b"\\", b"\n", b"{}", b"%d", b"SQ", b"UN", b"OB"]
PATCH = st.tuples(
    st.sampled_from(["set", "insert", "delete", "cut"]),
    st.floats(0.0, 1.0, exclude_max=True),
    # Most of what matters is in the header, and much of a file is voxels.
    st.booleans(),
    st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(EXTREMES + WORDS)),
)


def damage(data: bytes, patches: list[tuple[str, float, bool, bytes]]) -> bytes:
    out = bytearray(data)
    for kind, where, in_header, value in patches:
        place = int(where * (min(len(out), 700) if in_header else len(out)))
        if kind == "set":
            out[place : place + len(value)] = value
        elif kind == "insert":
            out[place:place] = value
        elif kind == "delete":
            del out[place : place + len(value)]
        elif not in_header:
            del out[place:]
    return bytes(out)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("good")
    write_series(folder, scan(), change=lambda i, dataset: compress(dataset, "JPEG"))
    worker = Reader(folder)
    yield worker
    worker.stop()


def fuzz(name: str, folder: Path, reader: Reader, examples: int) -> None:
    target = TARGETS[name](folder)
    assert reader.read(target.read)[0] == "scan"
    count = {"scan": 0, "refused": 0}

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(PATCH, min_size=1, max_size=4))
    def one(patches: list[tuple[str, float, bool, bytes]]) -> None:
        target.file.write_bytes(damage(target.data, patches))
        kind, text = reader.read(target.read)
        assert kind in count, f"{kind}: {text}"
        # Every declared size is held against the file, so that memory is never asked for in vain.
        assert "memory" not in text, text
        assert "\n" not in text, text
        count[kind] += 1

    one()
    assert count["scan"] > 0, count  # the damage is not always fatal,
    assert count["refused"] > 0 or examples < 100, count  # nor never


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes(name: str, tmp_path: Path, reader: Reader) -> None:
    fuzz(name, tmp_path, reader, examples=40)


@pytest.mark.slow
@pytest.mark.skipif("FUZZ_EXAMPLES" not in os.environ, reason="set FUZZ_EXAMPLES=5000 (examples a format) to run")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes_at_length(name: str, tmp_path: Path, reader: Reader) -> None:
    fuzz(name, tmp_path, reader, examples=int(os.environ["FUZZ_EXAMPLES"]))
