"""A model of three weights and its cases, for what a run does around any model; and widths for real models."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from diffux2ct.arguments import read
from diffux2ct.reconstructors.base import Objective, Trainable
from diffux2ct.training.checkpoints.resume import case_digest, find_resume, make_room
from diffux2ct.training.loggers import CsvLogger, Loggers
from diffux2ct.training.loop import stepping_back, train
from diffux2ct.training.settings import TrainerSettings

# All of the paper's parts in a hundredth of a second: for what a run does with the real models.
THIN = (
    "++sizes.tiny.channels=[8,8,8]",
    "++sizes.tiny.num_heads=1",
    "++sizes.tiny.condition_channels=[4,4,4]",
    "++sizes.tiny.plane_channels=8",
    "++sizes.tiny.encoder_channels=[8,8,8,8]",
)
# What another model needs besides.
THIN_MODELS = {
    "icm_reg": ("++sizes.tiny.condition_channels=[4,4,4,4]",),
    "backprojection_cnn": ("++sizes.tiny.channels=8",),
    "posterior_flow": ("++sizes.tiny.channels=[8,8]", "++sizes.tiny.condition_channels=[6,4,4]"),
    "vnet": ("++sizes.tiny.channels=[8,16,32,64]",),
    "x2ct_gan": (
        "++sizes.tiny={stem: 8, growth: 4, dense_layers: [1, 1, 1, 1, 1], channels: [4, 4, 8, 8, 16, 16], "
        "discriminator_channels: [8, 8, 16, 16]}",
    ),
}


def thin(*overrides: str) -> tuple[str, ...]:
    """Overrides that make the model that ``overrides`` choose thin."""
    models = [word.removeprefix("model=") for word in overrides if word.startswith("model=")]
    return (*THIN, *(THIN_MODELS.get(models[-1], ()) if models else ()))


# A run of the paper's model on the tests' phantoms, which are 16^3.
SMALL = (
    *("experiment=demo", "model=diffux2ct", "name=run", "dataset.size=16", "dataset.generate=null"),
    "trainer.device=cpu",
)


class Toy(Trainable):
    """Draws noise from each sample's seed; ``blow_up(seeds)`` tells how often its loss is multiplied."""

    def __init__(self, blow_up=lambda seeds: 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.blow_up = blow_up

    def objectives(self):
        return (Objective("toy", list(self.parameters()), self._loss),)

    def _loss(self, batch):
        generators = [torch.Generator().manual_seed(seed) for seed in batch["seed"].tolist()]
        noise = torch.stack([torch.randn(3, generator=generator) for generator in generators])
        error = (self.weight * (1 + 0.1 * noise) - batch["x"]).square().mean()
        return {"total": error * self.blow_up(batch["seed"])}


@dataclass
class Case:
    case_id: str


class Cases(torch.utils.data.Dataset):
    def __init__(self, count: int = 6):
        self.cases = [Case(f"case{i}") for i in range(count)]

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        return {"x": torch.full((3,), index / 10), "index": index}


def train_toy(run_dir: Path, blow_up=lambda seeds: 1.0, cases: Cases | None = None, **settings) -> Path:
    cases = cases or Cases()
    defaults = {"max_steps": 20, "precision": "fp32", "device": "cpu", "log_every": 1, "ema_decay": 0.9}
    chosen = read(TrainerSettings, defaults | settings)
    config = {"trainer": {"max_steps": chosen.max_steps, "lr_schedule": chosen.lr_schedule}}
    resume = find_resume(run_dir, chosen.resume, config, cases=case_digest(cases))
    make_room(run_dir, resume)
    run_dir.mkdir(parents=True, exist_ok=True)
    ended = stepping_back(
        lambda step_backs: train(
            lambda: Toy(blow_up),
            cases,
            None,
            lambda parameters: torch.optim.Adam(parameters, 1e-2),
            lambda step: Loggers([CsvLogger(run_dir, step)]),
            chosen,
            run_dir,
            config,
            find_resume(run_dir, "auto", config, pass_over=int(step_backs > 1)) if step_backs else resume,
            step_backs,
        ),
        chosen,
    )
    return ended.checkpoint
