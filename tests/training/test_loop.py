import csv
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.training.toy import thin, train_toy

from diffux2ct.build import build_dataset, build_reconstructor
from diffux2ct.cli.train import run
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import Stopped, UserError
from diffux2ct.load import load_run
from diffux2ct.reconstructors.base import Trainable
from diffux2ct.reconstructors.precision import effective
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.training.processes.signals import StopSignal
from diffux2ct.training.steps import clip, sample_seeds

GOLDEN = Path(__file__).parents[1] / "goldens" / "loss_curve.json"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def go(compose, tmp_path):
    """Runs the train command with overrides; returns its run folder."""

    def go(name: str, *overrides: str, whole_size: bool = False) -> Path:
        sizes = () if whole_size else thin(*overrides)
        run(compose(f"run_dir={tmp_path / name}", f"name={name}", *sizes, *overrides))
        return tmp_path / name

    return go


def curve(folder: Path, name: str) -> dict[int, float]:
    with open(folder / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == name}


def test_n_plus_m_steps_equal_n_then_resume_bit_for_bit(go):
    common = ("trainer.log_every=1", "sizes.tiny.dropout=0.1", "trainer.precision=fp32")
    whole = go("whole", *common, "trainer.max_steps=4")
    go("parts", *common, "trainer.max_steps=2")
    parts = go("parts", *common, "trainer.max_steps=4")
    a, b = (checkpoint.load(folder) for folder in (whole, parts))
    assert a["step"] == b["step"] == 4
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[part][key])), key
    for key, value in a["optimizers"]["diffusion"]["state"].items():
        torch.testing.assert_close(value, b["optimizers"]["diffusion"]["state"][key], rtol=0, atol=0)
    assert curve(whole, "diffusion/total") == curve(parts, "diffusion/total")
    assert len(curve(whole, "diffusion/total")) == 4


def test_each_objective_has_its_part_of_the_run_and_ends_on_its_average_also_when_resumed(go):
    common = ("model=posterior_flow", "trainer.log_every=1", "trainer.precision=fp32", "trainer.ema_decay=0.5")
    common += ("trainer.max_steps=6", "trainer.checkpoint_every=1", "trainer.keep_last=9", "trainer.lr_schedule=cosine")
    common += ("trainer.val_every=1", "trainer.num_val_cases=1", "model.sigma=5")
    folder = go("whole", *common, "model.flow_after=0.5")
    assert (
        checkpoint.load(folder / "checkpoints" / "best.pt")["step"] > 3
    )  # a mean alone, however good, is not the best
    assert list(curve(folder, "mean/total")) == [1, 2, 3]
    assert list(curve(folder, "flow/total")) == [4, 5, 6]
    at = {step: checkpoint.load(folder / "checkpoints" / f"step_{step:08d}.pt") for step in (2, 3, 4, 6)}
    for name, value in at[3]["model"].items():
        average = at[3]["ema"].get(f"average.{name}")
        if name.startswith("mean"):
            assert torch.equal(at[4]["model"][name], average), name  # settled when its part ended, and left alone
            assert torch.equal(at[6]["model"][name], average), name
        elif average is not None:
            assert torch.equal(value, at[2]["model"][name]), name  # the flow's turn had not come
    assert any(
        not torch.equal(v, at[4]["model"][n]) for n, v in at[3]["model"].items() if n.startswith("flow.unet.out")
    )
    assert [at[step]["watch"]["num_seen"] for step in (3, 4, 6)] == [3, 1, 3]  # losses are compared with their own
    # Each part has the whole schedule: the last rate of six cosine steps would be a twelfth of this.
    assert at[3]["optimizers"]["mean"]["param_groups"][0]["lr"] == pytest.approx(
        0.25 * at[3]["optimizers"]["mean"]["param_groups"][0]["initial_lr"]
    )

    # A run that is resumed at the boundary equals one that is not.
    whole = checkpoint.load(folder)["model"]
    go("whole", *common, "model.flow_after=0.5", f"trainer.resume={folder / 'checkpoints' / 'step_00000003.pt'}")
    for name, value in checkpoint.load(folder)["model"].items():
        assert torch.equal(value, whole[name]), name


def test_going_back_to_an_earlier_checkpoint_repeats_the_run_bit_for_bit_with_cosine_and_bf16(go):
    common = ("trainer.max_steps=4", "trainer.lr_schedule=cosine", "trainer.checkpoint_every=2", "trainer.keep_last=9")
    folder = go("back", *common)
    first = checkpoint.load(folder)["model"]
    go("back", *common, f"trainer.resume={folder / 'checkpoints' / 'step_00000002.pt'}")
    again = checkpoint.load(folder)["model"]
    for key, value in first.items():
        assert torch.equal(value, again[key]), key


def fixed_loss(model: Trainable, data: PreparedDataset) -> float:
    """The training loss over a data set, at noise and timesteps that are the same for every model."""
    samples = [data[i] for i in range(len(data))]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("volume", "frontal", "lateral")}
    losses = [model.objectives()[0].loss(batch | {"seed": sample_seeds(1, step, 0, len(data))}) for step in range(4)]
    return float(torch.stack([each["total"] for each in losses]).mean())


@pytest.mark.golden
def test_loss_curve_of_twenty_steps_is_golden(go, request):
    steps = ("trainer.max_steps=20", "trainer.log_every=1", "trainer.precision=fp32", "optim.lr=2e-3")
    folder = go("golden", *steps, whole_size=True)
    losses = list(curve(folder, "diffusion/total").values())
    if request.config.getoption("--update-goldens"):
        GOLDEN.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())["losses"]
    # Wide enough for another CPU's order of summation, far narrower than any change of the method.
    np.testing.assert_allclose(losses, golden, rtol=5e-3)
    # Each step draws other timesteps: whether the model learns shows at the same noise and timesteps, before and after.
    trained = load_run(folder, "cpu", "raw")
    torch.manual_seed(0)
    untrained, data = build_reconstructor(trained.cfg), build_dataset(trained.cfg.dataset, "train")
    before, after = (fixed_loss(model.eval(), data) for model in (untrained, trained.reconstructor))
    assert after < 0.8 * before


def test_the_paper_to_the_letter_is_plain_adam(go):
    """No warm-up, clipping or average: a step moves by what Adam makes of the gradient as it is."""
    literal = yaml.safe_load((CONFIGS / "experiment" / "paper_literal.yaml").read_text())["trainer"]
    words = [f"trainer.{key}={'null' if value is None else value}" for key, value in literal.items()]
    common = (
        "trainer.precision=fp32",
        "trainer.checkpoint_every=1",
        "trainer.keep_last=3",
        "trainer.max_steps=2",
        "trainer.log_every=1",
    )
    folder = go("letter", *common, *words, "optim.lr=1e-3")
    first, second = (checkpoint.load(folder / "checkpoints" / f"step_0000000{step}.pt") for step in (1, 2))
    assert first["ema"] is None
    norm = curve(folder, "diffusion/grad_norm")[1]
    for state in (first, second):
        assert [group["lr"] for group in state["optimizers"]["diffusion"]["param_groups"]] == [1e-3]
    # Adam's first moment after one step is a tenth of the gradient.
    moments = [values["exp_avg"] for values in first["optimizers"]["diffusion"]["state"].values()]
    assert torch.cat([moment.flatten() for moment in moments]).norm() * 10 == pytest.approx(norm, rel=1e-4)
    steep = torch.nn.Parameter(torch.zeros(4))
    steep.grad = torch.full((4,), 100.0)
    assert clip([steep], None) == 200
    assert steep.grad.tolist() == [100.0] * 4


def test_accumulated_parts_give_the_whole_batch_s_step(go):
    common = ("trainer.max_steps=2", "trainer.precision=fp32", "trainer.checkpoint_every=1", "trainer.log_every=1")
    folders = [go(f"parts{k}", *common, f"trainer.accumulate={k}") for k in (1, 4)]
    a, b = (checkpoint.load(folder)["model"] for folder in folders)
    start = checkpoint.load(folders[0] / "checkpoints" / "step_00000001.pt")["model"]
    moved = max((a[k] - start[k]).abs().max() for k in a)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0.02 * float(moved))
    # Adam and clipping forgive a gradient of another scale; its norm before clipping does not.
    norms = [curve(folder, "diffusion/grad_norm") for folder in folders]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_changed_config_is_refused_and_the_run_left_alone(go):
    folder = go("one", "trainer.max_steps=1")
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"another config \(optim\.lr\)"):
        go("one", "trainer.max_steps=2", "optim.lr=0.5")
    with pytest.raises(UserError, match=r"made under another config \(method, "):
        go("one", "model=icm_reg", "trainer.max_steps=2")
    assert (folder / "config.yaml").read_bytes() == before
    go("one", "trainer.max_steps=2", "optim.lr=0.5", "trainer.resume=never")
    assert checkpoint.load(folder)["step"] == 2


def test_a_run_says_first_what_it_is_and_where_it_goes_on(go, capsys):
    go("told", "trainer.max_steps=1", "model=x_ctrsnet_like")
    opening = next(line for line in capsys.readouterr().err.splitlines() if "told: " in line)
    words = f"{effective('bf16', 'cpu')} on cpu (one process); starting from step 0 of 1"
    recipe = r"batch 4, Adam at lr [\d.e-]+ \(\w+\)"
    assert re.search(rf"told: \d\.\d\d M parameters, 6 cases, {recipe}, {re.escape(words)}$", opening), opening
    go("told", "trainer.max_steps=2", "model=x_ctrsnet_like")
    assert "continuing from step 1 of 2" in capsys.readouterr().err
    go("told", "trainer.max_steps=2", "model=x_ctrsnet_like")
    assert "at step 2 of 2 already: raise trainer.max_steps" in capsys.readouterr().err


def test_stages_to_recompute_without_a_denoiser_are_told(go, capsys):
    go("idle", "trainer.max_steps=1", "trainer.checkpoint_stages=[16]", "model=x_ctrsnet_like")
    assert "trainer.checkpoint_stages: no effect" in capsys.readouterr().err
    go("used", "trainer.max_steps=1", "trainer.checkpoint_stages=[16]")
    assert "no effect" not in capsys.readouterr().err


def test_validation_samples_scores_and_previews(go):
    folder = go("val", "trainer.max_steps=2", "trainer.val_every=1", "trainer.num_val_cases=1")
    scores = curve(folder, "val/psnr3d")
    assert list(scores) == [1, 2]
    assert all(0 < value < 60 for value in scores.values())
    pictures = sorted((folder / "previews").glob("*.png"))
    assert len(pictures) == 2
    assert np.asarray(Image.open(pictures[0])).std() > 1


def test_max_minutes_ends_the_run_early_with_a_checkpoint(go):
    folder = go("short", "trainer.max_steps=100000", "trainer.max_minutes=0.02")
    assert 0 < checkpoint.load(folder)["step"] < 1000


def test_a_signal_ends_the_run_on_a_checkpoint_that_the_same_command_goes_on_from(go, tmp_path):
    metrics = tmp_path / "killed" / "metrics.csv"

    def kill():
        while not (metrics.exists() and metrics.read_text().count("\n") > 1):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(Stopped, match="stopped at step .* of 100000; the same command goes on") as stopped:
        go("killed", "trainer.log_every=1", "trainer.max_steps=100000")
    assert stopped.value.signal == signal.SIGTERM
    step = checkpoint.load(tmp_path / "killed")["step"]
    assert f"step {step} " in str(stopped.value)
    go("killed", "trainer.log_every=1", f"trainer.max_steps={step + 1}")
    assert list(curve(tmp_path / "killed", "diffusion/total")) == list(range(1, step + 2))


def test_a_scheduler_s_signal_saves_and_goes_on_to_who_handled_it_before(go, tmp_path):
    log, passed_on = tmp_path / "told" / "metrics.csv", []

    def tell():
        while not (log.exists() and log.read_text().count("\n") > 1):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    former = signal.signal(signal.SIGUSR2, lambda *_: passed_on.append(checkpoint.load(tmp_path / "told")["step"]))
    try:
        threading.Thread(target=tell, daemon=True).start()
        with pytest.raises(Stopped) as stopped:
            go("told", "trainer.log_every=1", "trainer.max_steps=100000")
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert stopped.value.signal == signal.SIGUSR2
    assert passed_on == [checkpoint.load(tmp_path / "told")["step"]]  # once, and the work was saved by then


def test_deterministic_runs_are_equal_bit_for_bit_and_are_what_was_asked(go, tmp_path):
    common = ("trainer.max_steps=3", "trainer.num_threads=2", "sizes.tiny.dropout=0.1")
    try:
        folders = [go(name, *common, "trainer.deterministic=true") for name in ("first", "second")]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (checkpoint.load(folder) for folder in folders)
    for part in ("model", "ema"):
        for key, value in a[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[part][key])), key
    train_toy(tmp_path / "third", max_steps=1)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_best_by_validation_is_kept_and_known_to_a_resumed_run(go):
    common = ("trainer.val_every=1", "trainer.num_val_cases=1", "trainer.keep_last=1")
    folder = go("best", *common, "trainer.max_steps=2")
    go("best", *common, "trainer.max_steps=4")
    scores = curve(folder, "val/psnr3d")
    step = max(scores, key=lambda step: scores[step])
    best = checkpoint.load(folder / "checkpoints" / "best.pt")
    assert best["step"] == step
    assert best["best_score"] == pytest.approx(scores[step], rel=1e-6)
    assert checkpoint.load(folder)["best_score"] == best["best_score"]


def test_one_ctrl_c_that_arrives_twice_is_one():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        stop._since -= 60
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_exploded_loss_stops_the_run(go):
    with pytest.raises(UserError, match="not finite"):
        go("nan", "trainer.max_steps=5", "trainer.log_every=1", "optim.lr=1e30", "trainer.grad_clip=null")


def test_uneven_batch_is_refused(go):
    with pytest.raises(UserError, match=r"batch_size=4: must be a multiple"):
        go("uneven", "trainer.accumulate=3")


def test_run_folder_says_how_to_repeat_it(go):
    folder = go("meta", "trainer.max_steps=1")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["versions"]["torch"] == torch.__version__
    assert len(provenance["manifest_sha256"]) == 64
    assert "seed: 0" in (folder / "config.yaml").read_text()
