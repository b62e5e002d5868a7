"""Sweeps on a cluster and on a machine of many cores, and the script of one run over several nodes."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module

from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.processes import launchers

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["slurm", "joblib"])
def test_a_launcher_without_its_plugin_is_one_line(name, monkeypatch):
    extra, _ = launchers.LAUNCHERS[name]
    monkeypatch.setitem(launchers.LAUNCHERS, name, (extra, "hydra_plugins.nowhere"))
    with pytest.raises(UserError, match=rf"^launcher={name}: its plugin is not installed; pip install .*\[{extra}\]'$"):
        launchers.check_launcher(["-m", f"launcher={name}"])
    launchers.check_launcher(["-m", "launcher=basic"])


@pytest.mark.parametrize(
    ("name", "target", "key", "value"),
    [("slurm", "SlurmLauncher", "signal_delay_s", 180), ("joblib", "JoblibLauncher", "n_jobs", 4)],
)
def test_a_launcher_with_its_plugin_composes_and_wants_a_sweep(name, target, key, value, tmp_path, monkeypatch):
    pytest.importorskip(launchers.LAUNCHERS[name][1], reason=f"the extra {name} is not installed")
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = hydra_compose("train", ["experiment=demo", f"launcher={name}"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith(target)
    assert cfg.hydra.launcher[key] == value
    if name == "slurm":
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match=r"^launcher=slurm: this machine has no srun; start it on .* node$"):
            launchers.check_launcher(["-m", "launcher=slurm"])
        stub(tmp_path, "srun", "")
    launchers.check_launcher(["-m", f"launcher={name}"])
    with pytest.raises(UserError, match="add -m"):
        launchers.check_launcher([f"launcher={name}"])


def stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def slurm(tmp_path: Path, step: str, preempted: bool = False) -> subprocess.Popen:
    """Runs train_slurm.sh where srun is ``step``, scancel signals it, and scontrol notes what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stub(tools, "srun", f'echo $$ > {tmp_path}/task; echo "$@" $MASTER_ADDR:$MASTER_PORT > {tmp_path}/srun; {step}')
    stub(tools, "scancel", f'[ "$*" = "--signal=TERM 123456" ] && kill -TERM "$(cat {tmp_path}/task)"')
    when = "2026-11-23T06:15:29" if preempted else "None"
    stub(
        tools,
        "scontrol",
        # It notes first: who reads one line of it ends it with the second.
        f'echo "$@" >> {tmp_path}/scontrol; case "$*" in "show hostnames"*) echo node7; echo node8;; '
        f'"show job 123456") echo "   PreemptEligibleTime=2026-11-23T06:15:25 PreemptTime={when}";; esac',
    )
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "train_slurm.sh"), "dataset=lumbarv", "optim.lr=1e-4"],
        env={**os.environ, **job, "SLURM_CPUS_PER_TASK": "6", "PATH": f"{tools}:{os.environ['PATH']}"},
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)


TRAINS = 'trap "echo saved >> {0}/saved; exit 143" TERM; touch {0}/ready; while true; do sleep 0.05; done'


@pytest.mark.parametrize("how", ["time limit", "preempted", "cancelled"])
def test_a_multi_node_job_that_is_signalled_saves_and_goes_back_into_the_queue(tmp_path, how):
    running = slurm(tmp_path, TRAINS.format(tmp_path), preempted=how == "preempted")
    wait_for(tmp_path / "ready")
    # What Slurm signals: the script near the limit, the tasks when it preempts, both when it cancels.
    if how != "time limit":
        os.kill(int((tmp_path / "task").read_text()), signal.SIGTERM)
    if how != "preempted":
        running.send_signal(signal.SIGUSR1 if how == "time limit" else signal.SIGTERM)
    assert running.wait(60) == 143
    assert (tmp_path / "saved").read_text() == "saved\n"
    asked = (tmp_path / "scontrol").read_text().splitlines()
    assert ("requeue 123456" in asked) == (how != "cancelled")
    told = (tmp_path / "srun").read_text()
    for expected in (
        "--kill-on-bad-exit=1 --cpus-per-task=6 bash -c",
        "RANK=$SLURM_PROCID",
        "WORLD_SIZE=$SLURM_NTASKS",
    ):
        assert expected in told
    assert told.split()[-4:] == ["train", "dataset=lumbarv", "optim.lr=1e-4", "node7:23456"]


def test_a_job_that_was_put_back_goes_on_whatever_its_command_says_of_resuming(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm(tmp_path, "exit 0").wait(60) == 0
    assert (tmp_path / "srun").read_text().split()[-2:] == ["trainer.resume=auto", "node7:23456"]


@pytest.mark.parametrize("status", [0, 3])
def test_a_multi_node_job_that_ends_by_itself_is_not_put_back(tmp_path, status):
    assert slurm(tmp_path, f"exit {status}").wait(60) == status
    assert "requeue" not in (tmp_path / "scontrol").read_text()


def jobs_of(folder: Path) -> list[int]:
    """Processes of submitit's jobs below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "submitit.core._submit" in words and str(folder) in " ".join(words):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.dist
def test_a_sweep_of_three_experiments_is_put_back_after_a_timeout_signal_and_goes_on(phantoms, tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    steps, sizes = 12, ("0.1", "0.2", "0.3")
    call = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_local"]
    call += [
        f"sizes.tiny.dropout={','.join(sizes)}",
        "experiment=demo",
        "model=diffux2ct",
        "name=sweep",
        "run_dir=runs/sweep",
        "dataset.size=16",
    ]
    call += [f"dataset.root={phantoms}", "dataset.generate=null", f"trainer.max_steps={steps}"]
    call += ["trainer.log_every=1", "trainer.device=cpu", "trainer.batch_size=4", "trainer.num_threads=1"]
    call += ["trainer.lr_schedule=constant", "hydra.launcher.timeout_min=60"]
    call += [f"hydra.launcher.submitit_folder={tmp_path}/jobs/%j"]
    running = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    # Two are signalled once they have trained a little, as Slurm would before the time limit.
    signalled: dict[Path, int] = {}
    while running.poll() is None and len(signalled) < 2:
        for log in (tmp_path / "runs").glob("sweep-*/metrics.csv"):
            folder = log.parent
            if folder not in signalled and len(signalled) < 2 and log.read_text().count("\n") > 8:
                (process,) = [p for p in jobs_of(tmp_path / "jobs") if opens(p, log)]
                os.kill(process, signal.SIGUSR2)
                signalled[folder] = process
        time.sleep(0.02)
    out, _ = running.communicate(timeout=900)
    assert running.returncode == 0, out[-3000:]
    assert len(signalled) == 2
    texts = [path.read_text() for path in (tmp_path / "jobs").rglob("*_log.*")]
    assert sum(text.count("remaining timeouts") for text in texts) == 2
    folders = sorted((tmp_path / "runs").glob("sweep-*"))
    assert len(folders) == 3
    for folder in folders:
        assert checkpoint.load(folder)["step"] == steps
        with open(folder / "metrics.csv", newline="") as file:
            logged = [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "diffusion/total"]
        assert logged == list(range(1, steps + 1))
    # What went on from its checkpoint has that one beside the last; what started anew would have the last alone.
    for folder in folders:
        kept = sorted(path.name for path in (folder / "checkpoints").glob("step_*.pt"))
        assert len(kept) == (2 if folder in signalled else 1), kept


def opens(process: int, path: Path) -> bool:
    """Whether the process holds the file open."""
    return any(os.path.realpath(fd) == str(path.resolve()) for fd in Path(f"/proc/{process}/fd").iterdir())
