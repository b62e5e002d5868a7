import json
import math

import pytest
import torch
from tests.training.toy import train_toy

from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.divergence import Diverged, LossWatch
from diffux2ct.training.processes.distributed import StepSampler
from diffux2ct.training.settings import TrainerSettings
from diffux2ct.training.steps import sample_seeds

CPU = torch.device("cpu")


def at_step(step: int, factor: float):
    """Multiplies the loss of that step of the undisturbed run with batches of two."""
    bad = set(sample_seeds(0, step, 0, 2).tolist())
    return lambda seeds: factor if bad & set(seeds.tolist()) else 1.0


def test_the_bad_batch_s_cases_are_named_though_it_is_noticed_later(tmp_path):
    with pytest.raises(
        Diverged, match=r"^step 12: toy/total is not finite; its cases are in .*bad_batch.json; the last"
    ):
        train_toy(tmp_path, at_step(11, math.nan), log_every=5, checkpoint_every=4)
    note = json.loads((tmp_path / "bad_batch.json").read_text())
    indices = StepSampler(6, TrainerSettings(12, batch_size=2), 11).batch(11)
    assert note["case_ids"] == [f"case{i}" for i in indices]
    assert note["step"] == 12
    assert note["losses"]["toy/total"] == "nan"
    # The checkpoint due at step 12 would have held spoilt weights.
    state = checkpoint.load(tmp_path)
    assert state["step"] == 8
    assert state["model"]["weight"].isfinite().all()


def test_an_exploding_loss_stops_the_run_and_a_growing_one_does_not(tmp_path):
    with pytest.raises(Diverged, match=r"step 15: toy/total exploded to [\d.e+]+"):
        train_toy(tmp_path / "a", at_step(14, 1e5))
    train_toy(tmp_path / "b", at_step(14, 20.0))
    train_toy(tmp_path / "c", at_step(14, 1e5), explosion_ratio=None)
    assert checkpoint.load(tmp_path / "b")["step"] == checkpoint.load(tmp_path / "c")["step"] == 20


def test_stepping_back_goes_on_from_the_last_checkpoint_with_other_noise(tmp_path, capsys):
    train_toy(tmp_path, at_step(11, math.inf), checkpoint_every=4, on_divergence="step_back")
    state = checkpoint.load(tmp_path)
    assert (state["step"], state["step_backs"]) == (20, 1)
    told = "warning: step 12: toy/total is not finite; back to the last checkpoint (1 of 3)"
    assert told in capsys.readouterr().err.splitlines()
    rows = [row.split(",") for row in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    steps = [int(step) for step, name, _ in rows if name == "toy/total"]
    assert steps == list(range(1, 21))  # none twice
    # Its steps before the checkpoint are those of the undisturbed run, the later ones are not.
    train_toy(tmp_path / "whole", checkpoint_every=4)
    whole = [row.split(",") for row in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[1:]]
    a, b = ([row for row in table if row[1] == "toy/total"] for table in (rows, whole))
    assert a[:8] == b[:8]
    assert a[8:] != b[8:]


def test_stepping_back_ends_after_its_tries_and_before_any_checkpoint_starts_anew(tmp_path, capsys):
    with pytest.raises(Diverged, match="step 1: toy/total is not finite"):
        train_toy(tmp_path, lambda seeds: math.nan, on_divergence="step_back", max_step_backs=2)
    told = capsys.readouterr().err
    assert "back to the last checkpoint (1 of 2)" in told
    assert "back to the checkpoint before the last (2 of 2)" in told
    assert checkpoint.load(tmp_path)["step"] == 0


def test_a_resumed_run_remembers_what_exploding_means_and_that_it_stepped_back(tmp_path):
    train_toy(tmp_path, at_step(3, math.nan), max_steps=12, on_divergence="step_back")
    before = checkpoint.load(tmp_path)
    train_toy(tmp_path, max_steps=14)
    after = checkpoint.load(tmp_path)
    assert (before["step_backs"], after["step_backs"]) == (1, 1)
    assert torch.equal(before["watch"]["reference"], after["watch"]["reference"])
    assert before["watch"]["num_seen"] + 2 == after["watch"]["num_seen"]


def test_only_totals_explode_and_the_first_bad_step_is_kept():
    watch = LossWatch(10.0, CPU)
    for step in range(12):
        watch.observe(step, {"a/total": torch.tensor(1.0), "a/grad_norm": torch.tensor(1.0)})
    watch.observe(12, {"a/total": torch.tensor(9.0), "a/grad_norm": torch.tensor(1e9)})
    assert watch.first_bad_step() is None
    watch.observe(13, {"a/total": torch.tensor(1.0), "a/grad_norm": torch.tensor(math.nan)})
    watch.observe(14, {"a/total": torch.tensor(math.nan), "a/grad_norm": torch.tensor(math.nan)})
    assert watch.first_bad_step() == 13
    assert watch.describe()[0] == "a/grad_norm is not finite"


def test_another_objective_s_losses_are_compared_with_its_own(tmp_path):
    watch = LossWatch(100.0, CPU)
    for step in range(12):
        watch.observe(step, {"mean/total": torch.tensor(0.001)})
    watch.restart()
    for step in range(12, 24):
        watch.observe(step, {"flow/total": torch.tensor(1.0)})
    assert watch.first_bad_step() is None  # a thousand times the mean's
    watch.observe(24, {"flow/total": torch.tensor(101.0)})
    assert watch.first_bad_step() == 24
    assert watch.describe()[0] == "flow/total exploded to 101"
