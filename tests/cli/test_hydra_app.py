"""What a user mistypes ends in one line that says the way out; what we print can be pasted."""

import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffux2ct.arguments import read
from diffux2ct.cli.evaluate import Evaluation, default_settings
from diffux2ct.cli.hydra_app import hydra_app, keep_text, warn_idle
from diffux2ct.cli.train import fixed_keys, sweep_suffix
from diffux2ct.command_line import as_typed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs a command's front door in an empty folder with the words of a command line; returns the configs it got."""

    def call(config: str, *words: str) -> list:
        got = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [config, *words, *fixed_keys(words)])
        hydra_app(config, lambda cfg: got.append((cfg, sweep_suffix(cfg))))
        return got

    return call


@pytest.mark.parametrize(
    ("config", "word", "parts"),
    [
        ("train", "expriment=demo", ["'expriment'", "did you mean experiment?", "--cfg job"]),
        ("train", "trainer.maxsteps=4", ["did you mean trainer.max_steps?", "--help"]),
        ("train", "num_workers=4", ["did you mean trainer.num_workers?"]),
        ("train", "loss.projection_wieght=4", ["did you mean loss.projection_weight?"]),
        ("train", "trainer.lr=1e-3", ["write optim.lr=1e-3"]),
        ("train", "sampler.steps=5", ["write sampler.num_inference_steps=5"]),
        ("evaluate", "dataset.root=a", ["write root=a"]),
        ("evaluate", "metrics=x2ct", ["write metrics.protocol=x2ct"]),
        ("evaluate", "metrics=distortion", ["write metrics.families=[distortion]"]),
        ("evaluate", "sampler.perturbation=zero", ["write perturbation=zero"]),
        ("evaluate", "sampler.name=ddpm", ["write sampler=ddpm"]),
        ("train", "sampler.perturbation=zero", ["write model.perturbation=zero"]),
        ("train", "widths=small", ["write size=small"]),
        ("train", "widths.channels=3", ["size=paper, small or tiny", "sizes.SIZE.channels=3"]),
        ("train", "logger=wandb", ["write logger.wandb.mode=online"]),
        ("train", "logger=tensorboard", ["write logger.tensorboard=true"]),
        ("train", "trainer=laptop trainer.device=cpu", ["write scale=laptop"]),
        ("train", "diffusion=v", ["write objective=v"]),
        ("train", "model=small", ["write size=small"]),
        ("train", "experiment=x2ct_gan_paper", ["write model=x2ct_gan"]),
        ("train", "optim=adam_gan", ["write model=x2ct_gan"]),
        ("train", "dataset=lumbarv dataset.num_train=4", ["dataset.generate.num_train is a key of dataset=phantom"]),
        ("train", "dataset.num_train=4", ["did you mean dataset.generate.num_train?"]),
        ("train", "sampler=ddpm sampler.eta=1", ["sampler.eta is a key of sampler=ddim, which is not chosen"]),
        ("train", "conditioning=none conditioning.fusion=mean", ["is a key of conditioning=implicit"]),
        ("train", "dataset.num_workers=4", ["did you mean trainer.num_workers?"]),
        ("train", "dataset.xyz=4", ["'dataset.xyz'; --cfg job"]),
        ("train", "model=icm_rg", ["did you mean icm_reg?"]),
        ("train", "zzz=1", ["unknown key 'zzz'; --cfg job"]),
        ("train", "model=3", ["a number"]),
        ("train", "objective=epsilon,v", ["-m runs once for each"]),
        ("drr", "camera=a b(c).nii", ["""quotes: 'camera="a b(c).nii"'"""]),
        ("drr", "camera=a,b.nii.gz", ["""'camera="a,b.nii.gz"'"""]),
        ("drr", "+foo=1", ["unknown key 'foo'"]),
        ("train", "+foo=1", ["unknown key 'foo'"]),
        ("drr", "scans/patient", ["scans/patient: is not key=value", "'key=a b'"]),
    ],
)
def test_a_mistyped_word_is_answered_in_one_line(call, capfd, config, word, parts):
    words = {"train": ["dataset=phantom"], "evaluate": ["ckpt=x"], "drr": ["out=out"]}[config]
    with pytest.raises(SystemExit) as end:
        call(config, *words, *(word.split() if "=" in word.partition(" ")[2] else [word]))
    message = str(end.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert "hydra.cc" not in message
    for part in parts:
        assert part in message
    assert capfd.readouterr() == ("", "")


def test_help_shows_the_options_of_groups_that_a_user_chooses_from(call, capsys):
    with pytest.raises(SystemExit):
        call("train", "--help")
    shown = capsys.readouterr().out
    assert "  optim=adamw                                Adam with decoupled weight decay.\n" in shown
    assert "dataset/prepare=x2ct" in shown
    assert "base=" not in shown  # nor what belongs to other commands
    assert "sampler=own" not in shown
    assert "runs/<name>.1" in shown
    assert "  size=tiny " in shown
    assert [line for line in shown.splitlines() if line.endswith("...")] == []  # nothing is cut
    assert "implicit neural decoder (paper Sec.\n" + " " * 45 + "3.2)." in shown
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("train")
    explained = re.findall(r"^  ((?:trainer|optim|logger|loss|diffusion)[\w.]+)=", shown, re.M)
    assert len(explained) > 25
    for key in explained:
        assert OmegaConf.select(cfg, key, default="?") != "?", key


def test_help_of_evaluate_explains_every_argument(call, capsys):
    with pytest.raises(SystemExit):
        call("evaluate", "--help")
    shown = capsys.readouterr().out
    defaults = default_settings()
    groups = ("interval", "metrics", "planted")
    keys = [key for key in defaults if key not in ("defaults", "hydra", "sampler", *groups)]
    for key in (*keys, *(f"{group}.{key}" for group in groups for key in defaults[group])):
        assert re.search(rf"^  {key}=\S+ *\S", shown, re.M), key
    samplers = [path.stem for path in (ROOT / "configs" / "sampler").glob("*.yaml")]
    (about,) = re.findall(r"^  sampler=own.*?(?=^  sampler\.)", shown, re.M | re.S)
    assert all(name in about for name in ("own", *samplers))
    for choice in ("shuffled", "swapped", "psct", "strict", "zero", "raw", "fp32", "distribution"):
        assert choice in shown


def test_words_without_effect_are_warned_of_by_the_word_as_typed(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["drr", "ct=a", "out=b", "kev=50", "effects.gamma=2", "seed=1"])
    hydra_app("drr", lambda cfg: warn_idle({"kev": "it is of attenuation=water", "effects": "x", "see": "y"}))
    assert capsys.readouterr().err.splitlines() == [
        "warning: kev=50: no effect, it is of attenuation=water",
        "warning: effects.gamma=2: no effect, x",
    ]


def test_keys_of_the_chosen_options_are_known(call):
    """``generate`` exists only with the phantoms, which come with the experiment."""
    with pytest.raises(SystemExit) as end:
        call("train", "experiment=demo", "dataset.generate.num_trian=3")
    assert "did you mean dataset.generate.num_train?" in str(end.value.code)


@pytest.mark.parametrize(
    "text", ["1_2", "2024", "1e3", "true", "a,b.nii.gz", "../my scans/patient 7 (b=2)", "[1]", "ends\\", "nan", "a:b"]
)
def test_a_path_reaches_the_command_as_typed(monkeypatch, tmp_path, text):
    got = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "ckpt=runs/a", f"out={text}", "root='quoted'", "max_cases=1_2"])
    hydra_app("evaluate", lambda cfg: got.append(read(Evaluation, cfg)), Evaluation)
    (settings,) = got
    assert settings.out == Path(text)
    assert settings.root == Path("quoted")
    assert settings.max_cases == 12


def test_lists_of_a_sweep_and_null_are_kept_for_hydra():
    assert keep_text(["out=null", "out="], {"out"}) == ["out=null", "out="]
    assert keep_text(["-m", "out=a,b", "out=1_2"], {"out"}) == ["-m", "out=a,b", 'out="1_2"']
    assert keep_text(["dry_run=no", "out=no", "x=Off"], {"out"}) == ["dry_run=false", 'out="no"', "x=false"]
    assert keep_text(["out=a,b", "seed=1_2", "+out=3"], {"out"}) == ['out="a,b"', "seed=1_2", '+out="3"']


def test_runs_of_a_sweep_have_names_that_can_be_typed_and_litter_nothing(call, tmp_path):
    got = call(
        "train",
        "-m",
        "experiment=demo",
        "model=diffux2ct",
        "objective=epsilon,v",
        "trainer.max_steps=4",
        "'dataset.window=[-1000,900],[-500,900]'"[1:-1],
    )
    names = [cfg.run_dir + suffix for cfg, suffix in got]
    # The steps are the same in all.
    assert names == [
        f"runs/{name}-dataset.window--{window}"
        for name in ("demo-diffux2ct-epsilon", "demo-diffux2ct")
        for window in ("1000-900", "500-900")
    ]
    assert [as_typed("ckpt", name) for name in names] == [f"ckpt={name}" for name in names]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.iterdir()] == ["runs"]
