"""A training run: its settings are checked before anything is written, and it says why it ended."""

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from diffux2ct.build import build_settings, resolved, unused_parts
from diffux2ct.cli.train import check_nodes, idle_settings, run, typed_again, why_ended
from diffux2ct.errors import UserError
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
    settings = TrainerSettings(max_steps=1200, max_minutes=3.0)
    assert why_ended(ended("max_minutes", 89), settings) == (
        "max_minutes=3 reached at step 89 of 1200; continue with: python train.py experiment=demo trainer.max_minutes=6"
    )


def test_a_run_at_its_last_step_says_how_to_train_longer(typed):
    typed("/usr/bin/diffux2ct-train", "name=a b", "trainer.max_steps=40")
    assert why_ended(ended("max_steps", 40), TrainerSettings(max_steps=40)) == (
        "max_steps=40 reached at step 40; continue with: diffux2ct-train 'name=a b' trainer.max_steps=80"
    )
    settings = TrainerSettings(max_steps=40, max_epochs=2.0)
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


CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def composed(*overrides):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose("train", ["dataset.root=x", *overrides])


def check(cfg):
    cfg = resolved(cfg)
    check_nodes(cfg)
    build_settings(cfg)


@pytest.mark.parametrize("model", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_every_model_passes(model):
    check(composed("dataset=phantom", "size=tiny", f"model={model}"))


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml")))
def test_every_data_set_passes(dataset):
    check(composed(f"dataset={dataset}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=abc", "trainer.max_steps=abc: not a whole number; give a whole number of at least 1"),
        ("trainer.device=mps", "trainer.device=mps: no such choice; give auto, cpu, cuda or cuda:N"),
        ("trainer.compile=maybe", "trainer.compile=maybe: not true or false; give true or false"),
        ("dataset.cache=maybe", "dataset.cache=maybe: not true or false; give true or false"),
        ("dataset.size=16.5", "dataset.size=16.5: not a whole number; give a whole number from 1 to 2048"),
        ("dataset.window=[1500,-1024]", "dataset.window=.*: not two rising numbers"),
        ("diffusion.zero_terminal_snr=maybe", "diffusion.zero_terminal_snr=maybe: not true or false"),
        ("optim.lr=nan", "optim.lr=nan: not a number"),
        ("optim.lr=abc", "optim.lr=abc: not a number"),
        ("name=null", "name=null: a value is needed; give a name"),
        ("+trainer.max_step=1", "unknown key 'trainer.max_step'; did you mean trainer.max_steps"),
        ("+dataset.foo=1", "unknown key 'dataset.foo'"),
        ("+model.foo=1", "unknown key 'model.foo'"),
        ("+optim.foo=1", "unknown key 'optim.foo'"),
        ("model._target_=abc", "model._target_=abc: no such class"),
        ("loss._target_=null", "loss._target_=None: no such class"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_by_its_name(override, message):
    with pytest.raises(UserError, match=f"^{message}") as error:
        check(composed("experiment=demo", "model=diffux2ct", override))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "idle", "used"),
    [
        ("model=icm_reg", {"sampler", "objective", "loss", "diffusion"}, {"conditioning", "metrics"}),
        ("model=vnet", {"sampler", "metrics", "trainer.val_every", "dataset.randomize"}, set()),
        ("scale=laptop", {"metrics", "trainer.num_val_cases", "diffusion.eq8"}, {"sampler", "diffusion.beta_end"}),
        ("objective=epsilon diffusion.schedule=cosine", {"diffusion.beta_start"}, {"diffusion.eq8", "metrics"}),
        ("loss.projection_weight=0", {"loss.projection_mode"}, {"loss.norm"}),
        ("dataset=folder", {"dataset.prepare.spacing", "trainer.max_step_backs"}, {"dataset.prepare.window"}),
        ("trainer.on_divergence=step_back", {"logger.wandb.project"}, {"trainer.max_step_backs"}),
    ],
)
def test_settings_that_a_training_does_not_use_are_named(words, idle, used):
    cfg = composed(*words.split())
    got = idle_settings(resolved(cfg), unused_parts(cfg)).keys()
    assert idle <= got
    assert not used & got


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sampler=ddim sampler.eta=-1", "sampler.eta=-1: "),
        ("sampler.num_inference_steps=0", "sampler.num_inference_steps=0: "),
        ("sampler.num_inference_steps=1001", "sampler.num_inference_steps=1001: must lie between 1 and .*=1000"),
        (
            "objective=v diffusion.timesteps=9 sampler=ddim_10",
            "sampler.num_inference_steps=10: must lie between 1 and 9",
        ),
        ("diffusion.timesteps=abc", "diffusion.timesteps=abc: "),
        ("diffusion.zero_terminal_snr=true", "diffusion.zero_terminal_snr=true: .*use prediction_type=v or x0"),
        ("loss.min_snr_gamma=0", "loss.min_snr_gamma=0: must be positive"),
        ("loss.min_snr_gamma=abc", "loss.min_snr_gamma=abc: not a number"),
        ("objective=x0 diffusion.timesteps=9 loss.min_snr_gamma=5", "loss.min_snr_gamma=5: gives no weight"),
        ("metrics.names=[psnr,psnrr]", r"metrics.names=psnrr: no such choice; did you mean psnr\? choose from"),
        ("metrics.names=psnr", "metrics.names=psnr: not a list"),
        ("sampler.num_inference_steps=abc", "sampler.num_inference_steps=abc: not a number"),
    ],
)
def test_a_sampler_is_checked_before_training_begins(words, message, tmp_path):
    """It is used first after thousands of steps, when a case is validated."""
    with pytest.raises(UserError, match=f"^{message}"):
        run(composed(*words.split(), f"run_dir={tmp_path / 'run'}", "trainer.device=cpu"))
    assert not list(tmp_path.iterdir())
