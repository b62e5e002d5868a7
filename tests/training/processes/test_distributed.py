import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from tests.training.toy import THIN, THIN_MODELS

from diffux2ct.cli.train import run
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.processes.distributed import StepSampler
from diffux2ct.training.settings import TrainerSettings

ROOT = Path(__file__).parents[3]


def steps(count: int, start_step: int = 0, rank: int = 0, world: int = 1, **settings) -> list[list[int]]:
    settings = TrainerSettings(100, batch_size=4, **settings)
    return list(islice(StepSampler(10, settings, start_step, rank, world), count))


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


SMALL = (
    "experiment=table1_diffux2ct_v",
    "scale=laptop",
    "dataset=phantom",
    "dataset.size=16",
    "dataset.generate=null",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.num_threads=1",
    "trainer.warmup_steps=0",
    "trainer.lr_schedule=constant",
    *THIN,
)
GAN = ("model=x2ct_gan", *THIN_MODELS["x2ct_gan"])


def train_forked(tmp_path: Path, phantoms: Path, runs: list[tuple[str, int, list[str]]], float64: bool = False) -> None:
    """Train (name, world, overrides) one after another; raises with what they printed where one fails."""
    jobs = [
        {
            "world": world,
            "overrides": [*SMALL, f"dataset.root={phantoms}", f"name={name}", f"run_dir={tmp_path / name}", *own],
        }
        for name, world, own in runs
    ]
    (tmp_path / "job.json").write_text(json.dumps({"float64": float64, "runs": jobs}))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("forked_runs.py")), str(tmp_path / "job.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def train_here(overrides: list[str]) -> None:
    """Train in this process."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", overrides=[*SMALL, *overrides])
    run(cfg)


def losses(folder: Path) -> dict[tuple[int, str], float]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if "/" in row["name"]]
    return {(int(row["step"]), row["name"]): float(row["value"]) for row in rows}


# Plain descent: Adam divides by the gradient's size, and so makes rounding's errors as large as its steps.
FIFTY = ("optim._target_=torch.optim.SGD", "optim.lr=1e-3", "trainer.max_steps=50")


def worst(one: dict[tuple[int, str], float], other: dict[tuple[int, str], float]) -> float:
    """The largest difference of any loss at any step, relative where the loss is above 1."""
    assert other.keys() == one.keys()
    keys = [key for key in one if not key[1].endswith("grad_norm")]
    return max(abs(other[key] - one[key]) / max(1.0, abs(one[key])) for key in keys)


@pytest.mark.dist
@pytest.mark.slow
# The GAN in double precision: in single precision the two networks' answers to each other turn the rounding of sums, in
# another order with each number of processes, from 4e-7 into 1e-2 within fifty steps.
@pytest.mark.parametrize(("model", "float64"), [((), False), (GAN, True)], ids=["diffusion", "gan"])
def test_fifty_steps_of_1_2_and_4_processes_have_equal_losses(phantoms, tmp_path, model, float64):
    runs = [(f"w{world}", world, [*FIFTY, *model]) for world in (1, 2, 4)]
    train_forked(tmp_path, phantoms, runs, float64)
    one = losses(tmp_path / "w1")
    assert len({step for step, _ in one}) == 50
    weights = checkpoint.load(tmp_path / "w1")["model"]
    assert {value.dtype for value in weights.values()} == {torch.float64 if float64 else torch.float32}
    for world in (2, 4):
        assert worst(one, losses(tmp_path / f"w{world}")) < (1e-7 if float64 else 1e-6)
        if float64:  # the log has eight digits, the weights have all
            torch.testing.assert_close(checkpoint.load(tmp_path / f"w{world}")["model"], weights, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    """Two steps at one global batch: ``one`` process, ``two`` by DDP, and two with shards (``fsdp``)."""
    folder = tmp_path_factory.mktemp("trained")
    plain = ["optim.lr=1e-4", "trainer.max_steps=2", "trainer.accumulate=2"]
    fsdp = [*plain, "trainer.strategy=fsdp", "trainer.val_every=2", "trainer.num_val_cases=1"]
    fsdp += ["sampler.num_inference_steps=1"]
    train_forked(folder, phantoms, [("one", 1, plain), ("two", 2, plain), ("fsdp", 2, fsdp)])
    return folder


@pytest.mark.dist
@pytest.mark.parametrize("other", ["two", "fsdp"])
def test_two_processes_train_as_one_with_the_joint_batch(trained, other):
    one, two = (checkpoint.load(trained / name) for name in ("one", other))
    for part in ("model", "ema"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(torch.as_tensor(two[part][key]), torch.as_tensor(value), rtol=0, atol=1e-4)
    # Adam's first moment after two steps is a sum of the two gradients: equal moments mean equal gradients.
    states = [state["optimizers"]["diffusion"]["state"] for state in (one, two)]
    for key, value in states[0].items():
        largest = float(value["exp_avg"].abs().max())
        torch.testing.assert_close(states[1][key]["exp_avg"], value["exp_avg"], rtol=1e-3, atol=1e-5 * largest)
    a, b = losses(trained / "one"), losses(trained / other)
    assert len(a) == 2 * 4  # two steps of total, simple, projection and grad_norm
    assert {key: b[key] for key in a} == pytest.approx(a, rel=1e-4)


@pytest.mark.dist
@pytest.mark.slow
def test_a_sharded_run_validates_and_goes_on_in_one_process_and_one_process_s_sharded(trained, phantoms):
    assert (2, "val/psnr3d") in losses(trained / "fsdp")
    assert (trained / "fsdp" / "checkpoints" / "best.pt").is_file()
    more = ["optim.lr=1e-4", "trainer.max_steps=3", "trainer.accumulate=2"]
    train_here([*more, "name=fsdp", f"dataset.root={phantoms}", f"run_dir={trained / 'fsdp'}"])
    train_forked(trained, phantoms, [("one", 2, [*more, "trainer.strategy=fsdp"])])
    a, b = losses(trained / "one"), losses(trained / "fsdp")
    assert b[3, "diffusion/total"] == pytest.approx(a[3, "diffusion/total"], rel=1e-4)


@pytest.mark.dist
@pytest.mark.slow
def test_a_sharded_gan_equals_one_process_s(phantoms, tmp_path):
    plain = [*GAN, "trainer.max_steps=2", "optim.lr=1e-4"]
    train_forked(tmp_path, phantoms, [("one", 1, plain), ("fsdp", 2, [*plain, "trainer.strategy=fsdp"])])
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.dist
@pytest.mark.slow
def test_sharded_matrices_are_gathered_for_muon_s_step(phantoms, tmp_path):
    plain = ["model=posterior_flow", *THIN_MODELS["posterior_flow"], "trainer.max_steps=4"]
    train_forked(tmp_path, phantoms, [("one", 1, plain), ("fsdp", 2, [*plain, "trainer.strategy=fsdp"])])
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = (checkpoint.load(tmp_path / name) for name in ("one", "fsdp"))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=2e-4)
    momenta = [state["optimizers"]["mean"]["state"] for state in (one, two)]
    assert any("momentum" in state for state in momenta[0].values())
    for key, value in momenta[0].items():
        name = "momentum" if "momentum" in value else "exp_avg"
        largest = float(value[name].abs().max())
        torch.testing.assert_close(momenta[1][key][name], value[name], rtol=1e-2, atol=1e-3 * largest)


@pytest.mark.dist
def test_a_killed_rank_ends_the_others_in_one_line_and_the_run_goes_on(phantoms, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29519"]
    own = ["trainer.max_steps=100000", "trainer.checkpoint_every=2", f"dataset.root={phantoms}", "name=killed"]
    running = subprocess.Popen(
        [*torchrun, str(ROOT / "train.py"), *SMALL, *own],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    folder = tmp_path / "runs" / "killed"
    while running.poll() is None and not (folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.05)
    os.kill(rank_process(running.pid, "1"), signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "rank 0: another process of this run ended, and reports its own error; the last checkpoint is intact" in err
    assert re.search(r"rank\s*: 1 .*\n.*exitcode\s*: -9", err), err[-3000:]
    step = checkpoint.load(folder)["step"]
    assert step > 0
    train_here([*own[1:], f"run_dir={folder}", f"trainer.max_steps={step + 1}"])
    assert checkpoint.load(folder)["step"] == step + 1


@pytest.mark.dist
def test_processes_that_found_different_checkpoints_end_in_one_line(phantoms, tmp_path):
    own = [f"run_dir={tmp_path}/node${{oc.env:RANK}}", "name=run"]  # as on nodes without a common disk
    first, then = [*own, "trainer.max_steps=1"], [*own, "trainer.max_steps=2"]
    with pytest.raises(
        AssertionError, match=r"node\d: the processes found different checkpoints in it, of steps 0 and 1; give a"
    ):
        train_forked(tmp_path, phantoms, [("run", 1, first), ("run", 2, then)])


def rank_process(launcher: int, rank: str) -> int:
    """The process of a rank among the launcher's children."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "stat").is_file():
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0RANK={rank}\0" in "\0" + (entry / "environ").read_text():
                return int(entry.name)
    raise AssertionError(f"torchrun has no rank {rank}")
