"""`scripts/train_slurm.sh` under a Slurm of its own: one node that is this machine, no authentication."""

import csv
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.training.processes.forked_runs import free_port
from tests.training.toy import THIN

from diffux2ct.training.checkpoints import file as checkpoint

ROOT = Path(__file__).parents[3]
DAEMONS = ("slurmctld", "slurmd")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=20
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.skipif(any(shutil.which(name) is None for name in DAEMONS), reason="needs Slurm (Debian: slurm-wlm)"),
]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Callable[..., str]]:
    """Runs one of Slurm's commands."""
    (tmp_path / "state").mkdir()
    (tmp_path / "spool").mkdir()
    config = tmp_path / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            folder=tmp_path,
            ports=[free_port(), free_port()],
        )
    )
    monkeypatch.setenv("SLURM_CONF", str(config))
    monkeypatch.setenv("PYTHON", sys.executable)
    daemons = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"])
    ]

    def call(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=30)
        return (done.stdout + done.stderr).strip()

    wait_until(lambda: "idle" in call("sinfo", "-h", "-o", "%T"), lambda: call("sinfo"))
    yield call
    call("scancel", "--user", getpass.getuser())
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(30)


def wait_until(true: Callable[[], bool], told: Callable[[], str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, told()[-3000:]
        time.sleep(0.1)


def steps(folder: Path) -> list[int]:
    if not (folder / "metrics.csv").exists():
        return []
    with open(folder / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "diffusion/total"]


def submit(slurm, phantoms: Path, folder: Path, num_steps: int) -> str:
    """Two processes; returns the job's number."""
    words = [
        "experiment=demo",
        "model=diffux2ct",
        "name=job",
        f"run_dir={folder}",
        "dataset.size=16",
        f"dataset.root={phantoms}",
    ]
    words += ["dataset.generate=null", "trainer.batch_size=4", "trainer.device=cpu", "trainer.num_threads=1"]
    words += ["trainer.log_every=1", "trainer.val_every=0", "trainer.lr_schedule=constant", *THIN]
    options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
    options += [f"--chdir={ROOT}", f"--output={folder.parent}/job.out", "--export=ALL"]
    script = str(ROOT / "scripts" / "train_slurm.sh")
    return slurm("sbatch", *options, script, *words, f"trainer.max_steps={num_steps}")


def test_a_job_near_its_time_limit_saves_goes_back_into_the_queue_and_on(slurm, phantoms, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "job.out"
    job = submit(slurm, phantoms, folder, 60)
    told = lambda: (tmp_path / "slurmctld.log").read_text() + (out.read_text() if out.exists() else "")  # noqa: E731
    wait_until(lambda: len(steps(folder)) > 5, told)
    slurm("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@180 does near the limit
    wait_until(lambda: "PENDING" in slurm("squeue", "-h", "-j", job, "-o", "%T"), told)
    stopped = checkpoint.load(folder)["step"]
    assert 5 < stopped < 60
    assert f"stopped at step {stopped} of 60" in told()

    def runs_again() -> bool:  # at once, and not after the two minutes that Slurm waits
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        return "RUNNING" in slurm("squeue", "-h", "-j", job, "-o", "%T")

    wait_until(runs_again, told)
    wait_until(lambda: "JobState=COMPLETED" in slurm("scontrol", "show", "job", job), told)
    assert checkpoint.load(folder)["step"] == 60
    assert steps(folder) == list(range(1, 61))
    assert f"continuing from step {stopped} of 60" in told()


def test_a_cancelled_job_saves_and_is_not_put_back(slurm, phantoms, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "job.out"
    job = submit(slurm, phantoms, folder, 100_000)
    told = lambda: (tmp_path / "slurmctld.log").read_text() + (out.read_text() if out.exists() else "")  # noqa: E731
    wait_until(lambda: len(steps(folder)) > 2, told)
    slurm("scancel", job)
    wait_until(lambda: slurm("squeue", "-h", "-j", job, "-o", "%T") in ("", "CANCELLED"), told)
    assert f"stopped at step {checkpoint.load(folder)['step']} of" in told()
    assert "CANCELLED" in slurm("scontrol", "show", "job", job)
    assert os.path.samefile(folder / "checkpoints" / "last.pt", sorted(folder.glob("checkpoints/step_*"))[-1])
