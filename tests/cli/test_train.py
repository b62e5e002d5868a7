"""How a training run ends: why, and the command that continues it."""

import sys
from pathlib import Path

import pytest

from diffux2ct.cli.train import typed_again, why_ended
from diffux2ct.training.loop import Ended
from diffux2ct.training.settings import TrainerSettings


@pytest.fixture
def typed(monkeypatch):
    """As if this process had been started with these words."""

    def start(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", list(words))
        monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.initialized", lambda: True)

    return start


def ended(by: str, step: int) -> Ended:
    return Ended(Path("runs/a/checkpoints/last.pt"), by, step)


def test_a_run_out_of_time_says_so_and_how_to_continue(typed):
    typed("train.py", "experiment=demo", "trainer.max_minutes=3", "trainer.resume=never")
    settings = TrainerSettings(max_steps=1200, max_minutes=3)
    assert why_ended(ended("max_minutes", 89), settings) == (
        "max_minutes=3 reached at step 89 of 1200; continue with: "
        "python train.py experiment=demo trainer.max_minutes=6"
    )


def test_a_run_at_its_last_step_says_how_to_train_longer(typed):
    typed("/usr/bin/diffux2ct-train", "name=a b", "trainer.max_steps=40")
    assert why_ended(ended("max_steps", 40), TrainerSettings(max_steps=40)) == (
        "max_steps=40 reached at step 40; continue with: diffux2ct-train 'name=a b' trainer.max_steps=80"
    )
    settings = TrainerSettings(max_steps=40, max_epochs=2)
    assert why_ended(ended("max_steps", 40), settings).endswith(" trainer.max_epochs=4")
    settings = TrainerSettings(max_steps=40, lr_schedule="cosine")
    assert why_ended(ended("max_steps", 40), settings) == (
        "max_steps=40 reached at step 40; lr_schedule=cosine ends here"
    )


def test_a_run_of_several_processes_continues_under_torchrun(typed, monkeypatch):
    typed("train.py", "experiment=demo")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert typed_again() == "torchrun --nproc-per-node=2 train.py experiment=demo"
