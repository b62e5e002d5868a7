"""Signals at awkward moments: with data workers, while validating, together with a divergence."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.training.toy import THIN, train_toy

from diffux2ct.cli.train import run
from diffux2ct.errors import Stopped
from diffux2ct.reconstructors.diffusion import DiffusionReconstructor
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.processes.signals import Interrupted, StopSignal

ROOT = Path(__file__).parents[3]


def test_a_signal_to_the_whole_group_spares_data_workers_until_the_step_is_saved(phantoms, tmp_path):
    words = ["experiment=demo", "model=diffux2ct", "name=group", "dataset.size=16", f"dataset.root={phantoms}", *THIN]
    words += ["dataset.generate=null", "trainer.max_steps=100000", "trainer.batch_size=4", "trainer.device=cpu"]
    words += ["trainer.num_workers=2", "trainer.log_every=1", "trainer.num_threads=1", "trainer.val_every=0"]
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    log, end = tmp_path / "runs" / "group" / "metrics.csv", time.monotonic() + 120
    while running.poll() is None and time.monotonic() < end and not (log.exists() and log.read_text().count("\n") > 9):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, told[-2000:]
    assert "the same command goes on from there" in told
    assert checkpoint.load(tmp_path / "runs" / "group")["step"] >= 1


def test_a_signal_ends_a_validation_that_would_take_long(compose, tmp_path, monkeypatch):
    started = tmp_path / "started"

    def endless(*_, **__):
        started.touch()
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(DiffusionReconstructor, "reconstruct", endless)

    def kill():
        while not started.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill, daemon=True).start()
    words = [*THIN, "trainer.max_steps=9", "trainer.val_every=2", f"run_dir={tmp_path / 'run'}", "name=run"]
    with pytest.raises(Stopped, match="stopped at step 2 of 9"):
        run(compose(*words))
    assert checkpoint.load(tmp_path / "run")["step"] == 2
    assert "val/" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_a_signal_stops_a_run_after_the_step_at_hand(tmp_path):
    def kill_at_third(seeds):
        count.append(1)
        if len(count) == 3:
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    count: list[int] = []
    with pytest.raises(Stopped, match="stopped at step 3 of 20; .* from there"):
        train_toy(tmp_path, kill_at_third)
    assert checkpoint.load(tmp_path)["step"] == 3


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_signal_with_a_divergence_stops_the_run_and_leaves_its_checkpoint(tmp_path, log_every):
    def kill_and_spoil(seeds):
        count.append(1)
        if len(count) == 6:
            signal.raise_signal(signal.SIGTERM)
        return math.nan if len(count) == 6 else 1.0

    count: list[int] = []
    with pytest.raises(Stopped, match="stopped at step 6 of 20; .* goes on from the last checkpoint") as stopped:
        train_toy(tmp_path, kill_and_spoil, checkpoint_every=4, log_every=log_every, on_divergence="step_back")
    assert stopped.value.signal == signal.SIGTERM
    assert checkpoint.load(tmp_path)["step"] == 4


def test_interrupting_work_is_left_at_once_and_not_entered_after_a_signal():
    with StopSignal() as stop:
        with stop.interrupting():
            pass
        for _ in range(2):  # by the signal, then because there was one
            with contextlib.suppress(Interrupted), stop.interrupting():
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("went on")
        signal.raise_signal(signal.SIGTERM)  # outside, it only counts
    assert stop.received == signal.SIGTERM
