import csv
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from diffux2ct.training import checkpoint
from diffux2ct.training.distributed import StepSampler

ROOT = Path(__file__).parents[2]


def steps(count: int, **kwargs) -> list[list[int]]:
    defaults = {
        "length": 10,
        "batch_size": 4,
        "seed": 0,
        "start_step": 0,
        "rank": 0,
        "world": 1,
        "accumulate": 1,
    }
    return list(islice(StepSampler(**(defaults | kwargs)), count))


def test_ranks_and_parts_share_the_global_batch_in_order():
    whole = steps(6)
    ranks = [steps(6, world=2, rank=rank) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    parts = steps(12, accumulate=2)
    assert [parts[2 * i] + parts[2 * i + 1] for i in range(6)] == whole


def test_resuming_continues_the_order_and_epochs_are_whole():
    assert steps(8)[3:] == steps(5, start_step=3)
    flat = [i for batch in steps(5) for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert steps(5, seed=1) != steps(5)


@pytest.mark.dist
def test_two_processes_train_as_one_with_the_joint_batch(phantoms, tmp_path):
    overrides = [
        "experiment=demo",
        "dataset.size=16",
        f"dataset.root={phantoms}",
        "dataset.generate=null",
        "trainer.batch_size=4",
        "trainer.max_steps=3",
        "trainer.log_every=1",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "trainer.num_threads=1",
        "trainer.warmup_steps=0",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517"]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, str(ROOT / "train.py"), *overrides, f"name={name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (checkpoint.load(tmp_path / "runs" / name) for name in ("one", "two"))
    # Adam's first moment after three steps is a sum of the three gradients: equal moments mean equal gradients.
    for key, value in one["optimizers"]["diffusion"]["state"].items():
        other = two["optimizers"]["diffusion"]["state"][key]["exp_avg"]
        torch.testing.assert_close(
            other, value["exp_avg"], rtol=1e-3, atol=1e-5 * float(value["exp_avg"].abs().max())
        )
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=0, atol=1e-4)
    logs = []
    for name in ("one", "two"):
        with open(tmp_path / "runs" / name / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["name"].startswith("diffusion/")]
        logs.append({(row["step"], row["name"]): float(row["value"]) for row in rows})
    assert len(logs[0]) == 3 * 4  # three steps of total, simple, projection and grad_norm
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
