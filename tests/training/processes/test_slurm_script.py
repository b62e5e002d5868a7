"""`scripts/train_slurm.sh` with commands of its own in place of Slurm's."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from diffux2ct.training.processes import distributed

SCRIPT = Path(__file__).parents[3] / "scripts" / "train_slurm.sh"


@pytest.mark.parametrize("status", [0, 7])
def test_the_status_of_a_step_that_ends_before_it_is_waited_for_is_kept(tmp_path, status):
    for name, text in (("srun", f"exit {status}"), ("scontrol", "echo"), ("scancel", "")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    # Read by bash first: the step is over before the script comes to these commands.
    (tmp_path / "slow").write_text("""trap '[[ $BASH_COMMAND == @(kill|wait)* ]] && sleep 0.5' DEBUG\n""")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BASH_ENV": str(tmp_path / "slow")}
    env |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "5"}
    done = subprocess.run(["bash", str(SCRIPT)], env=env, timeout=60, capture_output=True, cwd=tmp_path)
    assert done.returncode == status, done.stderr


def test_a_process_that_sees_one_gpu_alone_takes_it_whatever_its_local_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert distributed.local_device() == 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert distributed.local_device() == 3
