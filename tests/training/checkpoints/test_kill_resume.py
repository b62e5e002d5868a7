import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_runs_that_are_killed_at_random_end_as_if_undisturbed(tmp_path):
    script = ROOT / "benchmarks" / "kill_resume.py"
    counts = ["--kills", "4", "--terms", "2", "--steps", "8", "--out", str(tmp_path / "out.csv")]
    done = subprocess.run(
        [sys.executable, str(script), *counts],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(row["signal"], row["sent"], row["wrong"]) for row in rows] == [
        ("SIGKILL", "4", "0"),
        ("SIGTERM", "2", "0"),
    ]
