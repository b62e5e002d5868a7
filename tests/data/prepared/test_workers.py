import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffux2ct.data.prepared.workers import run_in_workers

JOBS = """
import signal, sys, time
from pathlib import Path
from diffux2ct.data.prepared.workers import run_in_workers
from waits import wait
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        list(run_in_workers(wait, [Path(sys.argv[1]) / str(i) for i in range(5)], 2))
    except KeyboardInterrupt:
        sys.exit(130)
"""
WAITS = """
import os, time
def wait(path):
    path.write_text(str(os.getpid()))
    time.sleep(1000)
"""


def test_one_worker_is_this_process():
    assert list(run_in_workers(abs, [-1, 2], 1)) == [(-1, 1), (2, 2)]


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A process whose two workers have begun the first two of five jobs, and theirs."""
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "waits.py").write_text(WAITS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "jobs.py", tmp_path],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    notes = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(note.exists() and note.read_text() for note in notes))
    try:
        yield parent, [int(note.read_text()) for note in notes]
    finally:
        with contextlib.suppress(ProcessLookupError):  # where the test failed, they would run on
            os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.dist
def test_workers_end_with_the_process_that_started_them(busy):
    parent, pids = busy
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(map(alive, pids)))


@pytest.mark.dist
@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C", "kill -INT"])
def test_an_interrupt_ends_jobs_in_their_middle_and_begins_no_others(busy, tmp_path: Path, to_all: bool):
    parent, pids = busy
    os.killpg(parent.pid, signal.SIGINT) if to_all else parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=120)  # jobs take 1000 s
    wait_until(lambda: not any(map(alive, pids)))
    assert parent.returncode == 130
    assert errors.count("Traceback") == 0
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["0", "1"]


UNGUARDED = """
import sys
from diffux2ct.data.phantom.generate import generate_dataset
print("begin")
generate_dataset(sys.argv[1], 2, 0, 1, size=16, extent_mm=256, seed=0, workers=2)
"""


@pytest.mark.dist
@pytest.mark.parametrize("as_module", [False, True], ids=["script", "module"])
def test_a_script_without_a_main_guard_may_generate_phantoms(tmp_path: Path, as_module: bool):
    (tmp_path / "plain.py").write_text(UNGUARDED)
    command = [sys.executable, *(["-m", "plain"] if as_module else ["plain.py"]), "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (0, "begin\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "out/cases").glob("*/case.json"))) == 3


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
