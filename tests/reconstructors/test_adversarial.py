import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from torch import nn

from diffux2ct import build
from diffux2ct.cli.train import run
from diffux2ct.reconstructors.adversarial import AdversarialReconstructor
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
VIEWS = ("frontal", "lateral")


class Backproject(nn.Module):
    """The plainest generator: the mean of both X-rays, expanded; one learned scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, xrays):
        return self.scale * (xrays["frontal"][:, :, :, None, :] + xrays["lateral"][:, :, :, :, None])


class Difference(nn.Module):
    """The plainest discriminator: how the volume differs from its X-rays; one learned scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, volume, xrays):
        return self.scale * (volume - xrays["frontal"][:, :, :, None, :])


def batch(size: int = 8, num: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(num, 1, *shape, generator=generator) * 2 - 1  # noqa: E731
    return {
        "volume": draw(size, size, size),
        "frontal": draw(size, size),
        "lateral": draw(size, size),
        "seed": torch.arange(num),
    }


def test_losses_are_the_distances_that_they_are_named_after():
    data, generator, discriminator = batch(), Backproject(), Difference()
    xrays = {view: data[view] for view in VIEWS}
    of_discriminator, of_generator = AdversarialReconstructor(generator, discriminator, 0.1, 7, 5).objectives()
    assert (of_discriminator.name, of_generator.name) == ("discriminator", "generator")
    made = generator(xrays)
    real, fake = discriminator(data["volume"], xrays), discriminator(made, xrays)
    losses = of_discriminator.loss(data)
    torch.testing.assert_close(losses["total"], 0.1 * ((real - 1).square().mean() + fake.square().mean()))
    torch.testing.assert_close(losses["score_fake"], fake.mean())
    difference = (made - data["volume"]) / 2  # in [0, 1]
    planes = sum(difference.mean(axis).abs().mean() for axis in (2, 3, 4)) / 3
    expected = 0.1 * (fake - 1).square().mean() + 7 * difference.square().mean() + 5 * planes
    torch.testing.assert_close(of_generator.loss(data)["total"], expected)


@pytest.mark.parametrize(
    ("objective", "own", "other"), [(0, "discriminator", "generator"), (1, "generator", "discriminator")]
)
def test_an_objective_leaves_no_gradient_in_the_other_network(compose, objective, own, other):
    model = build.build_reconstructor(compose("model=x2ct_gan")).train()
    chosen = model.objectives()[objective]
    assert chosen.name == own
    assert {id(p) for p in chosen.parameters} == {id(p) for p in getattr(model, own).parameters()}
    chosen.loss(batch(16))["total"].backward()
    assert all(p.grad is not None for p in getattr(model, own).parameters())
    assert all(p.grad is None and p.requires_grad for p in getattr(model, other).parameters())


def test_both_objectives_see_one_made_volume_that_depends_on_seeds_alone(compose):
    model = build.build_reconstructor(compose("model=x2ct_gan")).train()
    made: list[torch.Tensor] = []
    model.generator.register_forward_hook(lambda *args: made.append(args[-1].detach()))
    data = batch(16)
    for objective in model.objectives():
        objective.loss(data)
    assert torch.equal(made[0], made[1])
    loss = model.objectives()[1].loss
    together = loss(data)["total"]
    alone = [loss({key: value[i : i + 1] for key, value in data.items()})["total"] for i in range(2)]
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-5, atol=1e-6)
    loss(data | {"seed": torch.tensor([7, 8])})
    assert (made[-1] - made[0]).abs().max() > 1e-7  # Connection A's dropout


def test_reconstruction_is_clamped_and_has_no_dropout(compose):
    model = build.build_reconstructor(compose("model=x2ct_gan"))
    xrays = {view: batch(16)[view] for view in VIEWS}
    with torch.no_grad():
        model.generator.out.bias.fill_(0.5)
        volume = model.eval().reconstruct(xrays)
        torch.testing.assert_close(volume, model.generator(xrays).clamp(-1, 1))
        model.generator.out.bias.fill_(9.0)
        assert (model.reconstruct(xrays) == 1).all()


def test_linear_decay_is_constant_for_half_the_steps():
    settings = TrainerSettings(max_steps=100, lr_schedule="linear_decay")
    assert [settings.lr_factor(step) for step in (0, 50, 75, 100)] == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("experiment", "beta2", "schedule", "num_cases", "steps"),
    [("table1_x2ct_gan", 0.999, "constant", 917, 68_775), ("x2ct_gan_code", 0.99, "linear_decay", 916, 22_900)],
)
def test_recipes(experiment, beta2, schedule, num_cases, steps):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = hydra_compose("train", overrides=[f"experiment={experiment}"])
    assert (cfg.optim._target_, cfg.optim.lr, list(cfg.optim.betas)) == ("torch.optim.Adam", 2e-4, [0.5, beta2])
    settings = build.build_settings(cfg).with_steps_for(num_cases)
    assert (settings.lr_schedule, settings.batch_size, settings.max_steps) == (schedule, 4, steps)
    weights = (cfg.model.adversarial_weight, cfg.model.mse_weight, cfg.model.projection_weight)
    assert (weights, cfg.model.generator.dropout, cfg.dataset.size) == ((0.1, 10, 10), 0.5, 128)


def curve(folder: Path) -> dict[tuple[str, str], float]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if "/" in row["name"]]
    return {(row["step"], row["name"]): float(row["value"]) for row in rows}


def test_n_plus_m_steps_equal_n_then_resume_bit_for_bit(compose, tmp_path):
    def go(name: str, steps: int) -> Path:
        common = (
            "trainer.ema_decay=0.9",
            "trainer.log_every=1",
            "trainer.batch_size=2",
            "trainer.lr_schedule=constant",
        )
        overrides = (f"run_dir={tmp_path / name}", f"name={name}", f"trainer.max_steps={steps}")
        run(compose("model=x2ct_gan", *common, *overrides))
        return tmp_path / name

    whole, _, parts = go("whole", 4), go("parts", 2), go("parts", 4)
    a, b = (checkpoint.load(folder) for folder in (whole, parts))
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[part][key])), key
    assert set(a["optimizers"]) == {"discriminator", "generator"}
    for name, optimizer in a["optimizers"].items():
        for key, value in optimizer["state"].items():
            torch.testing.assert_close(value, b["optimizers"][name]["state"][key], rtol=0, atol=0)
    assert curve(whole) == curve(parts)
    assert len(curve(whole)) == 4 * (6 + 5)


@pytest.mark.dist
def test_two_processes_train_as_one_with_the_joint_batch(compose, phantoms, tmp_path):
    overrides = [
        "model=x2ct_gan",
        # Adam divides by the gradient's size, and so makes rounding's errors as large as its steps.
        "optim._target_=torch.optim.SGD",
        "~optim.betas",
        "optim.lr=1e-2",
        "+optim.momentum=0.9",
        "trainer.batch_size=2",
        "trainer.max_steps=2",
        "trainer.log_every=1",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "trainer.warmup_steps=0",
        "trainer.lr_schedule=constant",
    ]
    run(compose(*overrides, f"run_dir={tmp_path / 'runs' / 'one'}", "name=one"))
    same_data = [
        "scale=laptop",
        "dataset=phantom",
        "dataset.size=16",
        f"dataset.root={phantoms}",
        "dataset.generate=null",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29518"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "train.py"), *same_data, *overrides, "trainer.num_threads=1", "name=two"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (checkpoint.load(tmp_path / "runs" / name) for name in ("one", "two"))
    for name, optimizer in one["optimizers"].items():
        momenta = {key: value["momentum_buffer"] for key, value in optimizer["state"].items()}
        largest = max(float(value.abs().max()) for value in momenta.values())
        for key, value in momenta.items():
            other = two["optimizers"][name]["state"][key]["momentum_buffer"]
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-5 * largest)
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-4, atol=1e-6)
    logs = [curve(tmp_path / "runs" / name) for name in ("one", "two")]
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
