import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffux2ct import build, load
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.diffusion.samplers.sampling import sampling_record
from diffux2ct.errors import UserError
from diffux2ct.training.validation import Validator

OWN_SAMPLER = '''
from diffux2ct.diffusion.samplers.sampling import Sampler

class Warm(Sampler):
    """One file, one setting of its own."""
    def __init__(self, num_inference_steps=3, temperature=1.0):
        super().__init__(num_inference_steps)
        self.temperature = temperature

    def step(self, now):
        return now.x_0 + self.temperature * now.draw_noise()
'''


def changes(*overrides):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose("evaluate", ["ckpt=x", *overrides]).sampler


@pytest.fixture(scope="module")
def run():
    from tests.cli.tiny_run import SIZE, composed

    def make(*overrides):
        cfg = composed("train", "experiment=demo", "model=diffux2ct", f"dataset.size={SIZE}", *overrides)
        return load.LoadedRun(build.build_reconstructor(cfg), cfg, Path("run"), 1)

    return make


@pytest.mark.parametrize(
    ("overrides", "record"),
    [
        ([], {"name": "ddim", "num_inference_steps": 10, "eta": 0.0}),
        (["sampler.num_inference_steps=4"], {"name": "ddim", "num_inference_steps": 4, "eta": 0.0}),
        (["sampler.eta=1"], {"name": "ddim", "num_inference_steps": 10, "eta": 1.0}),
        (["sampler=ddim", "sampler.eta=1"], {"name": "ddim", "num_inference_steps": 50, "eta": 1.0}),
        (["sampler=ddpm"], {"name": "ddpm", "num_inference_steps": 1000}),
        (["sampler=dpm_solver"], {"name": "dpm_solver", "num_inference_steps": 20}),
        (["sampler=heun"], {"name": "heun", "num_inference_steps": 10, "num_evaluations": 19}),
    ],
)
def test_a_command_changes_the_run_s_sampler_or_takes_another(run, overrides, record):
    sampling = run().sampling(changes(*overrides))
    assert sampling_record(sampling) == record | {"perturbation": "random"}


def test_another_sampler_beside_an_experiment_has_its_own_steps():
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["experiment=demo", "model=diffux2ct", "sampler=ddpm"])
    assert build.build_sampler(cfg.sampler).num_inference_steps is None


def test_unknown_settings_of_a_sampler_are_refused(run):
    with pytest.raises(UserError, match=r"temperature=2: Ddim has no such .* has num_inference_steps, eta$"):
        run().sampling(changes("sampler.temperature=2"))
    with pytest.raises(UserError, match="eta=1: Ddpm has no such setting; it has num_inference_steps$"):
        run().sampling(OmegaConf.create({"_target_": "diffux2ct.diffusion.samplers.ddpm.Ddpm", "eta": 1}))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "no sampler is chosen"),
        ("os.path.join", "no such class"),
        ("pathlib.Path", "is no sampler"),
        ("diffux2ct.nowhere.X", "no such class"),
    ],
)
def test_what_is_no_sampler_is_refused(target, words):
    with pytest.raises(UserError, match=words):
        build.build_sampler(OmegaConf.create({} if target is None else {"_target_": target}))


def test_another_sampler_leaves_the_steps_of_a_method_without_one(run, capsys):
    flow = run("model=posterior_flow")
    flow.model.flow_trained.fill_(True)
    assert flow.sampling(changes("sampler.num_inference_steps=7"))["num_inference_steps"] == 7
    assert capsys.readouterr().err == ""
    assert flow.sampling(changes("sampler=ddim"))["num_inference_steps"] == 2
    assert "sampler.num_inference_steps=50" in capsys.readouterr().err


def test_a_sampler_for_a_regressor_is_warned_of(run, capsys):
    regressor = run("model=backprojection_cnn")
    assert regressor.sampling(changes("sampler=ddpm"), perturbation="zero") == {}
    warning = capsys.readouterr().err
    assert "perturbation=zero: no effect, a RegressionReconstructor has no such setting" in warning
    assert regressor.sampling(changes()) == {}
    assert capsys.readouterr().err == ""


def test_a_new_sampler_is_one_file_and_one_config(run, tmp_path, monkeypatch):
    (tmp_path / "own_warm_sampler.py").write_text(OWN_SAMPLER)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sampler").mkdir()
    yaml = "_target_: own_warm_sampler.Warm\nnum_inference_steps: 3\ntemperature: 1.0\n"
    (tmp_path / "sampler" / "warm.yaml").write_text(yaml)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    sampling = run().sampling(changes(search, "sampler=warm", "sampler.temperature=2.5"))
    wanted = {"name": "warm", "num_inference_steps": 3, "temperature": 2.5, "perturbation": "random"}
    assert sampling_record(sampling) == wanted
    assert isinstance(sampling["sampler"], sys.modules["own_warm_sampler"].Warm)
    trained = run(search, "sampler=warm")
    assert trained.sampling(changes("sampler.temperature=0.5"))["sampler"].temperature == 0.5
    assert run().sampling(Ddim(7))["sampler"].num_inference_steps == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sizes.tiny.encoder_channels=[8,8]", "num_scales=3: 2 encoder levels give 1 to 2 scales"),
        ("conditioning=expand sizes.tiny.encoder_channels=[8,8]", "encoder_channels: 3 scales need 3 levels or more"),
        ("sizes.tiny.channels=[8,8]", "denoiser.channels: 2 stages, 3 conditions"),
        ("sizes.tiny.channels=[9,8,8]", "denoiser.channels: the time embedding needs an even width, not 9"),
        ("sizes.tiny.num_heads=3", "num_heads=3: does not divide 64 channels"),
        ("sizes.tiny.encoder_channels=[8,8,8,6]", "encoder_channels: the last, 6, must be a multiple of 4"),
        ("sizes.tiny.dropout=1.0", "dropout=1.0: must lie between 0 and 1"),
        ("model=icm_reg sizes.tiny.dropout=-0.1", "dropout=-0.1: must lie between 0 and 1"),
        ("diffusion.schedule=square", "diffusion.schedule=square: choose linear or cosine"),
        ("diffusion.num_train_timesteps=0", "diffusion.num_train_timesteps=0: must be at least 1"),
    ],
)
def test_settings_that_fit_no_model_are_refused_in_one_line(words, message):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train", ["dataset=phantom", "dataset.size=32", "size=tiny", *words.split()])
    with torch.device("meta"), pytest.raises(UserError, match=f"^{message}") as error:
        build.build_reconstructor(build.resolved(cfg))
    assert "\n" not in str(error.value)


def test_a_split_of_one_training_patient_or_without_validation_is_warned_of(phantoms):
    def warnings(train_set, validator, *words):
        with initialize_config_module("diffux2ct.configs", version_base="1.3"):
            cfg = compose("train", [f"dataset.root={phantoms}", *words])
        return [line.partition(": ")[2] for line in build.split_warnings(cfg, train_set, validator)]

    train_set = PreparedDataset(phantoms, "train")
    validator = Validator(PreparedDataset(phantoms, "val"), {}, {}, train_set.window)
    assert warnings(train_set, validator) == []
    assert warnings(train_set, None) == ["no case is in val, so training is not validated"]
    assert warnings(train_set, None, "trainer.val_every=0") == []
    assert warnings(train_set.first(1), validator) == ["phantom_train_00000 is the only patient in train"]
