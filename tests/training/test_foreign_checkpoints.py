"""What is no checkpoint of the run's model: refused in one line wherever one is read, with nothing executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from diffux2ct import build, load
from diffux2ct.cli.evaluate import run as evaluate
from diffux2ct.cli.train import run as train
from diffux2ct.errors import UserError
from diffux2ct.training import checkpoint

from .toy import THIN

WEIGHT = "denoiser.stem.weight"


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    """The run folder of one step."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(config(phantoms, folder))
    return folder


def config(phantoms: Path, folder: Path, *overrides: str):
    from hydra import compose, initialize_config_module

    small = ["experiment=demo", "name=run", "dataset.size=16", "dataset.generate=null", "trainer.device=cpu"]
    small += ["trainer.max_steps=1", "trainer.lr_schedule=constant", f"dataset.root={phantoms}", *THIN]
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose("train", overrides=[*small, f"run_dir={folder}", *overrides])


def evaluation(path: Path):
    from hydra import compose, initialize_config_module

    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose("evaluate", overrides=[f"ckpt={path}", "device=cpu"])


def pickled(state: dict, phantoms: Path, path: Path) -> None:
    torch.save({**state, "format": 1, "note": Payload(path.parent / "ran")}, path)


def bare(state: dict, phantoms: Path, path: Path) -> None:
    """As another program writes one, with no zip file around it."""
    path.write_bytes(pickle.dumps({"model": Payload(path.parent / "ran")}))


def sealed(state: dict, phantoms: Path, path: Path) -> None:
    checkpoint.save(path, {**state, "config": Payload(path.parent / "ran")})


def naming(state: dict, phantoms: Path, path: Path) -> None:
    """Nothing to unpickle, but Hydra would call what the config names."""
    foreign = {"_target_": "os.mkdir", "path": str(path.parent / "ran")}
    checkpoint.save(path, {**state, "config": {**state["config"], "model": foreign}})


def truncated(state: dict, phantoms: Path, path: Path) -> None:
    checkpoint.save(path, state)
    path.write_bytes(path.read_bytes()[:-1000])


def swapped(state: dict, phantoms: Path, path: Path) -> None:
    """A weight and its average with two dimensions exchanged."""
    other = state["model"][WEIGHT].transpose(0, 1).contiguous()
    average = {**state["ema"], f"average.{WEIGHT}": other}
    checkpoint.save(path, {**state, "model": {**state["model"], WEIGHT: other}, "ema": average})


def swapped_average(state: dict, phantoms: Path, path: Path) -> None:
    other = state["model"][WEIGHT].transpose(0, 1).contiguous()
    checkpoint.save(path, {**state, "ema": {**state["ema"], f"average.{WEIGHT}": other}})


def halves(state: dict, phantoms: Path, path: Path) -> None:
    other = state["model"][WEIGHT].half()
    checkpoint.save(path, {**state, "model": {**state["model"], WEIGHT: other}})


def of_another_model(state: dict, phantoms: Path, path: Path) -> None:
    other = build.build_reconstructor(config(phantoms, path.parent, "model=icm_reg"))
    checkpoint.save(path, {**state, "model": other.state_dict(), "ema": None})


def without_step(state: dict, phantoms: Path, path: Path) -> None:
    checkpoint.save(path, {key: value for key, value in state.items() if key != "step"})


BAD = {
    pickled: r"not a readable checkpoint: it names code \(\w+\.mkdir\), of which nothing is run",
    bare: "a pickle of another program, of which nothing is run",
    sealed: r"not a readable checkpoint: it names code \(\w+\.mkdir\), of which nothing is run",
    naming: r"was made under another config|its config names 'os\.mkdir', which is no part of diffux2ct",
    truncated: "not a readable checkpoint, perhaps truncated",
    swapped: rf"its weights do not fit the model \({WEIGHT} is float32 \[",
    swapped_average: rf"its averaged weights do not fit the model \((average\.)?{WEIGHT} is float32 \[",
    halves: rf"its weights do not fit the model \({WEIGHT} is float16 \[.*\], where the model has float32",
    of_another_model: r"its weights do not fit the model \(no [\w.]+\)",
    without_step: "it holds no step",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_it_is_refused_in_one_line_and_nothing_is_executed(trained, phantoms, tmp_path, make):
    path = tmp_path / "bad.pt"
    make(checkpoint.load(trained), phantoms, path)
    resuming = config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2")
    for use in (lambda: train(resuming), lambda: evaluate(evaluation(path)), lambda: load(path, "cpu")):
        with pytest.raises(UserError, match=f"bad.pt: ({BAD[make]})") as error:
            use()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400
        assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_what_the_run_wrote_is_taken_by_all_three(trained, phantoms, tmp_path):
    path = trained / "checkpoints" / "last.pt"
    train(config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2"))
    assert checkpoint.load(tmp_path / "run")["step"] == 2
    weight = load(path, "cpu").state_dict()[WEIGHT]
    average = checkpoint.load(path)["ema"][f"average.{WEIGHT}"]
    torch.testing.assert_close(weight, average, rtol=0, atol=0)
    assert build.load_run(path, "cpu", "raw").step == 1
