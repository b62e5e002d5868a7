"""What is no checkpoint of the run's model: refused in one line wherever one is read, with nothing executed."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tests.cli.tiny_run import composed
from tests.training.toy import SMALL, thin

from diffux2ct import build, load, load_model
from diffux2ct.cli.evaluate import run as evaluate
from diffux2ct.cli.train import run as train
from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints import file as checkpoint

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
    own = ["trainer.max_steps=1", "trainer.lr_schedule=constant", f"dataset.root={phantoms}", f"run_dir={folder}"]
    return composed("train", *SMALL, *own, *thin(*overrides), *overrides)


def evaluation(path: Path):
    return composed("evaluate", f"ckpt={path}", "device=cpu")


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
    pickled: r"not a readable checkpoint: it names code \(\w+\.mkdir\), which is not run",
    bare: "a pickle of another program, which is not run",
    sealed: r"not a readable checkpoint: it names code \(\w+\.mkdir\), which is not run",
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
    for use in (lambda: train(resuming), lambda: evaluate(evaluation(path)), lambda: load_model(path, "cpu")):
        with pytest.raises(UserError, match=f"bad.pt: ({BAD[make]})") as error:
            use()
        assert "\n" not in str(error.value)
        assert len(str(error.value).replace(str(tmp_path), "")) < 400
        assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def changed(state: dict, keys: str, value) -> dict:
    """The state with what lies at the dotted ``keys`` replaced; None takes it out."""
    key, _, rest = keys.partition(".")
    key = int(key) if key.isdigit() else key
    if not rest and value is GONE:
        return {k: v for k, v in state.items() if k != key}
    inner = value if not rest else changed(state[key], rest, value)
    return {**state, key: inner}


GONE = object()
ITSELF: list = []
ITSELF.append(ITSELF)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch says that these are a prototype; such a tensor has no shape
    NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
FIRST = "optimizers.diffusion.state.0"
WRONG = [
    ("config", "text", "its config is of type str"),
    ("config", [1], "its config is of type list"),
    ("config", None, "its config is of type NoneType"),
    ("step", "3", "its step is of type str"),
    ("config", {"name": torch.zeros(2)}, "its config has name of type Tensor"),
    ("config", {"name": ITSELF}, r"its config has name[.0]+ of type list"),
    ("config", {"a\nb" * 200: 1}, "was made under another config"),
    ("step", -5, "its step is -5"),
    ("step_backs", 2**70, r"its step_backs is \d+"),
    ("elapsed", float("nan"), "its elapsed is nan"),
    ("ema", [1], "its ema is of type list"),
    ("ema.num_updates", GONE, "its averaged weights have no num_updates"),
    ("ema.num_updates", -10, "its averaged weights have no num_updates"),
    ("rng", torch.zeros_like(torch.get_rng_state()), "its rng is no state of PyTorch's generator"),
    ("rng", torch.zeros_like(torch.get_rng_state()).to_sparse(), "its rng is sparse uint8"),
    ("rng", None, "its rng is of type NoneType"),
    ("rng", torch.zeros(3, dtype=torch.uint8), r"its rng is uint8 \[3\]"),
    ("watch", [1], "its watch is of type list"),
    ("watch.reference", torch.zeros(2, 2), "loss-watch state is invalid"),
    ("watch.reference", torch.zeros(2, device="meta"), "loss-watch state is invalid"),
    ("watch.reference", NESTED, "loss-watch state is invalid"),
    ("watch.num_seen", -1, "loss-watch state is invalid"),
    ("optimizers", [1], "its optimizers is of type list"),
    ("optimizers.diffusion", 3, "its optimiser diffusion steps 0 parameters"),
    ("optimizers.diffusion.param_groups", GONE, "its optimiser diffusion steps 0 parameters"),
    ("optimizers.diffusion.param_groups", 3, "its optimiser diffusion steps 0 parameters"),
    ("optimizers.diffusion.state", "x", "its optimiser diffusion has no state"),
    ("optimizers.diffusion.state.9999", {}, "its optimiser diffusion has a state for 9999, of"),
    (f"{FIRST}.exp_avg", GONE, "its optimiser diffusion holds step, exp_avg_sq for a parameter"),
    (f"{FIRST}.exp_avg", torch.tensor(0.0), r"its optimiser diffusion has exp_avg float32 \[\], where"),
    (f"{FIRST}.exp_avg", "zeros", "its optimiser diffusion has exp_avg of type str"),
    (f"{FIRST}.exp_avg", NESTED, "its optimiser diffusion has exp_avg nested float32, where"),
    (f"{FIRST}.exp_avg", torch.zeros(2, device="meta"), "its optimiser diffusion has exp_avg meta float32"),
    (f"{FIRST}.step", torch.tensor(-1.0), "its optimiser diffusion has step -1"),
    (f"{FIRST}.step", torch.tensor(float("nan")), "its optimiser diffusion has step nan"),
    (f"{FIRST}.step", torch.zeros(2), r"its optimiser diffusion has step float32 \[2\]"),
]


@pytest.mark.parametrize(("keys", "value", "words"), WRONG, ids=[k for k, _, _ in WRONG])
def test_a_sealed_file_of_wrong_types_is_refused_by_resume(trained, phantoms, tmp_path, keys, value, words):
    path = tmp_path / "bad.pt"
    checkpoint.save(path, changed(checkpoint.load(trained), keys, value))
    with pytest.raises(UserError, match=f"bad.pt: {words}") as error:
        train(config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2"))
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(tmp_path), "")) < 400
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_an_optimiser_of_another_dtype_is_refused(trained, phantoms, tmp_path, dtype):
    path, state = tmp_path / "bad.pt", checkpoint.load(trained)
    other = state["optimizers"]["diffusion"]["state"][0]["exp_avg"].to(dtype)
    checkpoint.save(path, changed(state, f"{FIRST}.exp_avg", other))
    with pytest.raises(UserError, match=rf"has exp_avg {str(dtype)[6:]} \[.*\], where this run's is float32"):
        train(config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2"))


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("config", None, "its config is of type NoneType"),
        ("config.trainer", GONE, "its config has no trainer"),
        ("config.trainer.max_steps", GONE, r"its config has no trainer\.max_steps"),
        ("config.name", torch.zeros(2), "its config has name of type Tensor"),
        ("config.name", "${oc.env:HOME}", "its config leaves name open"),
        ("config.trainer.channels_last", "${nope}", r"its config leaves trainer\.channels_last open"),
        ("config.dataset.size", GONE, r"its config has no dataset\.size"),
        ("config.dataset.window", [1], r"its config has no dataset\.window of two numbers"),
        ("config.dataset.generate", "x", r"its config has dataset\.generate of type str"),
        ("config.sampler._target_", None, r"its config has sampler\._target_ of type NoneType"),
        ("config.sampler._target_", "os.system", "its config names .os.system., which is no part of diffux2ct"),
        ("config.model", "unet", "its config has model of type str"),
        ("config.model.no_such", 3, r"its config builds no model \(.*no_such"),
        ("config.model.denoiser", {"_target_": "diffux2ct.models.nowhere.X"}, "its config builds no model"),
        ("ema", [1], "its ema is of type list"),
        ("ema", {}, "its averaged weights do not fit the model"),
        ("ema.7", 1, "its averaged weights do not fit the model"),
        ("step", "3", "its step is of type str"),
        (f"model.{WEIGHT}", torch.Tensor.to_sparse, "its weights do not fit the model"),
        (f"model.{WEIGHT}", lambda own: torch.empty_like(own, device="meta"), "its weights do not fit the model"),
        (f"model.{WEIGHT}", lambda own: NESTED, "its weights do not fit the model"),
    ],
)
def test_a_sealed_file_of_wrong_types_is_refused_by_load(trained, tmp_path, keys, value, words):
    path, state = tmp_path / "bad.pt", checkpoint.load(trained)
    if keys == f"model.{WEIGHT}":
        state["model"][WEIGHT] = value(state["model"][WEIGHT])
    else:
        state = changed(state, keys, value)
    checkpoint.save(path, state)
    with pytest.raises(UserError, match=f"bad.pt: {words}") as error:
        load_model(path, "cpu")
    assert "\n" not in str(error.value)


def test_rates_and_kernels_are_the_run_s_own_not_the_file_s(trained, phantoms, tmp_path):
    path, state = tmp_path / "rate.pt", checkpoint.load(trained)
    assert not state["optimizers"]["diffusion"]["param_groups"][0]["fused"]
    state["optimizers"]["diffusion"]["param_groups"][0] |= {"lr": 1e9, "initial_lr": 1e9}
    checkpoint.save(path, state)
    train(config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2", "trainer.fused=true"))
    (group,) = checkpoint.load(tmp_path / "run")["optimizers"]["diffusion"]["param_groups"]
    assert group["fused"]
    assert group["lr"] < 1


@pytest.mark.parametrize("key", ["format", "sealed"])
def test_a_mark_that_is_a_tensor_is_refused(trained, tmp_path, key):
    torch.save({**checkpoint.load(trained), "format": 1, key: torch.zeros(2)}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt: not a"):
        checkpoint.load(tmp_path / "bad.pt")


def test_a_schedule_of_unknown_length_is_refused(trained, phantoms, tmp_path):
    state = checkpoint.load(trained)
    state["config"]["trainer"]["lr_schedule"] = "cosine"
    checkpoint.save(tmp_path / "bad.pt", changed(state, "config.trainer.max_steps", GONE))
    resume = f"trainer.resume={tmp_path / 'bad.pt'}"
    with pytest.raises(UserError, match=r"bad\.pt: was made under another config \(trainer\.max_steps"):
        train(config(phantoms, tmp_path / "run", resume, "trainer.lr_schedule=cosine"))


def test_moments_that_share_their_memory_are_stepped_apart(trained, phantoms, tmp_path):
    path, state = tmp_path / "shared.pt", checkpoint.load(trained)
    moment = state["optimizers"]["diffusion"]["state"][0]["exp_avg"]
    checkpoint.save(path, changed(state, f"{FIRST}.exp_avg", torch.zeros(1).expand(moment.shape)))
    train(config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2"))
    after = checkpoint.load(tmp_path / "run")["optimizers"]["diffusion"]["state"][0]["exp_avg"]
    assert after.unique().numel() > 1


@pytest.mark.parametrize("kind", ["Adafactor", "SGD", "NAdam"])
def test_an_optimiser_of_another_kind_goes_on_with_the_same_bits(phantoms, tmp_path, kind):
    """Adafactor keeps sums over rows and columns, of other shapes than the parameter."""
    optim = {"_target_": f"torch.optim.{kind}", "_partial_": True, "lr": 1e-3}
    for name, steps in (("parts", 1), ("parts", 2), ("whole", 2)):
        cfg = config(phantoms, tmp_path / name, f"trainer.max_steps={steps}")
        cfg.optim = OmegaConf.create(optim)
        train(cfg)
    parts, whole = checkpoint.load(tmp_path / "parts"), checkpoint.load(tmp_path / "whole")
    for key in ("model", "optimizers"):
        torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=0)


@pytest.mark.parametrize("root", ["elsewhere", "{}/elsewhere"], ids=["relative", "absolute"])
def test_evaluating_a_foreign_file_makes_no_phantoms_where_it_says(trained, tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    state = checkpoint.load(trained)
    state["config"]["dataset"] |= {
        "root": root.format(tmp_path),
        "generate": {"num_train": 2, "num_val": 1, "num_test": 1, "seed": 0},
    }
    checkpoint.save(tmp_path / "foreign.pt", state)
    with pytest.raises(UserError, match=r"elsewhere: the phantoms that .*foreign.pt was trained on are not there"):
        evaluate(evaluation(tmp_path / "foreign.pt"))
    assert not (tmp_path / "elsewhere").exists()


def test_what_the_run_wrote_is_taken_by_all_three(trained, phantoms, tmp_path):
    path = trained / "checkpoints" / "last.pt"
    train(config(phantoms, tmp_path / "run", f"trainer.resume={path}", "trainer.max_steps=2"))
    assert checkpoint.load(tmp_path / "run")["step"] == 2
    weight = load_model(path, "cpu").state_dict()[WEIGHT]
    average = checkpoint.load(path)["ema"][f"average.{WEIGHT}"]
    torch.testing.assert_close(weight, average, rtol=0, atol=0)
    assert load.load_run(path, "cpu", "raw").step == 1
