import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffux2ct.data.workers import run_in_workers

JOBS = """
import sys, time
from pathlib import Path
from diffux2ct.data.workers import run_in_workers
from waits import wait
if __name__ == "__main__":
    list(run_in_workers(wait, [Path(sys.argv[1]) / str(i) for i in range(2)], 2))
"""
WAITS = """
import os, time
def wait(path):
    path.write_text(str(os.getpid()))
    time.sleep(100)
"""


def test_one_worker_is_this_process():
    assert list(run_in_workers(abs, [-1, 2], 1)) == [(-1, 1), (2, 2)]


@pytest.mark.dist
def test_workers_end_with_the_process_that_started_them(tmp_path: Path):
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "waits.py").write_text(WAITS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, tmp_path / "jobs.py", tmp_path], env=environment)
    notes = [tmp_path / "0", tmp_path / "1"]
    deadline = time.monotonic() + 120
    while not all(note.exists() and note.read_text() for note in notes) and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = [int(note.read_text()) for note in notes]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
