"""A model folder: what it holds, that it reconstructs like its run, and that a foreign or damaged one is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.cli.tiny_run import composed
from tests.training.toy import SMALL, THIN, thin

from diffux2ct.cli.evaluate import run as evaluate
from diffux2ct.cli.train import export
from diffux2ct.cli.train import run as train
from diffux2ct.comparison.find_runs import read_runs
from diffux2ct.errors import UserError
from diffux2ct.inference.inputs import model_grid
from diffux2ct.inference.reconstruct import reconstruct
from diffux2ct.load import export_model, load_run


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    few = ["trainer.max_steps=2", "trainer.ema_decay=0.5", "sampler.num_inference_steps=1", *THIN]
    train(composed("train", *SMALL, *few, f"dataset.root={phantoms}", f"run_dir={folder}"))
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    return export_model(trained, tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def model(exported, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "m"))


def xrays() -> tuple[np.ndarray, np.ndarray]:
    rows, cols = np.mgrid[:16, :16].astype(np.float32)
    return rows / 4, cols / 3


def test_a_model_folder_reconstructs_like_its_run(trained, exported):
    assert sorted(p.name for p in exported.iterdir()) == ["config.yaml", "model.safetensors"]
    assert (exported / "model.safetensors").stat().st_mode & 0o444 == 0o444  # a folder to pass on
    run, loaded = load_run(trained, "cpu"), load_run(exported, "cpu")
    assert (loaded.step, loaded.path) == (2, exported / "model.safetensors")
    assert load_run(exported / "model.safetensors", "cpu").step == 2
    averaged = run.model.state_dict()
    raw = load_run(trained, "cpu", "raw").model.state_dict()
    assert any(not torch.equal(averaged[name], raw[name]) for name in raw)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, averaged[name])
    one, two = (reconstruct(path, *xrays(), device="cpu", precision="fp32") for path in (trained, exported))
    assert np.array_equal(one.hu, two.hu)
    assert one.record["spacing"] == two.record["spacing"]


def test_a_model_folder_needs_no_prepared_data_set(phantoms, trained, exported, model):
    config = OmegaConf.load(exported / "config.yaml")
    described = json.loads((phantoms / "dataset.json").read_text())
    assert config.dataset.size == 16
    assert config.dataset.camera.preset == described["preset"]
    config.dataset.root = "/nowhere"
    OmegaConf.save(config, model / "config.yaml")
    made = reconstruct(model, *xrays(), device="cpu", precision="fp32")
    here = model_grid(load_run(trained, "cpu").cfg.dataset)
    assert (made.hu.shape[0], made.record["spacing"]) == here


def test_a_model_folder_is_evaluated_beside_itself(model, capsys):
    before = sorted(model.rglob("*"))
    evaluate(
        composed(
            "evaluate",
            f"ckpt={model}",
            "device=cpu",
            "max_cases=1",
            "num_report_cases=0",
            "metrics.families=[distortion]",
        )
    )
    (folder,) = (model.parent / "m-evaluation").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["step"] == 2
    assert sorted(model.rglob("*")) == before
    assert f"{model} is a model folder, so this evaluation is beside it: {folder}" in capsys.readouterr().err
    (run,), _ = read_runs([model])  # which compare.py finds by the model
    assert (run.folder, run.method) == (folder.resolve(), "diffux2ct")


def test_nothing_is_replaced(trained, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("kept")
    with pytest.raises(UserError, match="exists already"):
        export(composed("export_model", f"ckpt={trained}", f"out={tmp_path / 'mine'}"))
    assert (tmp_path / "mine" / "notes").read_text() == "kept"
    export(composed("export_model", f"ckpt={trained}", f"out={tmp_path / 'm'}"))
    assert "evaluate" in capsys.readouterr().out


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def no_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def foreign_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")


def missing_weight(folder: Path) -> None:
    values = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    values.pop(next(name for name in values if name.endswith("weight")))
    save_file(values, folder / "model.safetensors", metadata)


def edited(**changes):
    def edit(folder: Path) -> None:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        for key, value in changes.items():
            OmegaConf.save(OmegaConf.create(config | {key: value}), folder / "config.yaml")

    return edit


def written(text: str):
    return lambda folder: (folder / "config.yaml").write_text(text)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "model.safetensors: not a readable safetensors file, perhaps truncated"),
        (no_config, "config.yaml: missing"),
        (foreign_weights, "model.safetensors: not weights that"),
        (missing_weight, "its weights do not fit the model"),
        (edited(model={"_target_": "os.mkdir", "path": "ran"}), "names 'os.mkdir'"),
        (edited(model=None), "its config has model of type NoneType"),
        (edited(name="${oc.env:HOME}"), "leaves name open"),
        (written("- a\n- b\n"), "config is of type list"),
        (written("a: [unclosed\n"), "not a readable config"),
        (written(BOMB), "it has an alias"),
        (written("a: ${unclosed\n"), "not a readable config"),
        (written("{}\n"), "its config has no name"),
        (lambda folder: (folder / "config.yaml").write_bytes(b"\xff\xfe\x00"), "not a readable config"),
    ],
)
def test_a_damaged_or_foreign_model_folder_is_refused_in_one_line(model, damage, message, monkeypatch):
    monkeypatch.chdir(model)
    damage(model)
    with pytest.raises(UserError, match=message) as error:
        load_run(model, "cpu")
    assert str(error.value).startswith(str(model))
    assert "\n" not in str(error.value)
    assert not (model / "ran").exists()


def test_a_model_folder_has_no_raw_weights(model):
    with pytest.raises(UserError, match="one set of weights; leave out weights=raw"):
        load_run(model, "cpu", "raw")


def test_posterior_flow_is_trained_scored_exported_and_used(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["experiment=plus", "scale=laptop", "dataset=phantom", "dataset.size=16", "dataset.generate=null"]
    small += [
        *thin("model=posterior_flow"),
        f"dataset.root={phantoms}",
        "trainer.device=cpu",
        "trainer.max_steps=2",
        "trainer.ema_decay=0.5",
    ]
    train(composed("train", *small, f"run_dir={tmp_path / 'run'}"))
    few = ["ckpt=run", "max_cases=1", "num_report_cases=1", "metrics.families=[distortion]", "device=cpu"]
    for words in (["output=mean"], ["output=ensemble", "num_samples=2", "sampler.num_inference_steps=3"]):
        evaluate(composed("evaluate", *few, *words))
    assert "warning" not in capsys.readouterr().err
    marks = "distortion-first1"
    made = {path.name for path in (tmp_path / "run/evaluation").iterdir()}
    assert {f"phantom-test-mean-{marks}", f"phantom-test-ensemble-samples2-steps3-{marks}"} <= made
    summary = json.loads((tmp_path / f"run/evaluation/phantom-test-mean-{marks}/metrics.json").read_text())
    assert summary["sampling"] == {"output": "mean"}

    # A model folder knows the camera of its training; other rays give another CT.
    export_model(tmp_path / "run", tmp_path / "m")
    by_run, by_folder = (reconstruct(name, *xrays(), output="mean", device="cpu") for name in ("run", "m"))
    np.testing.assert_array_equal(by_folder.hu, by_run.hu)
    config = yaml.safe_load((tmp_path / "m/config.yaml").read_text())
    config["dataset"]["camera"]["geometry"]["sad"] = 300.0
    config["dataset"]["camera"]["geometry"]["sid"] = 450.0
    (tmp_path / "m/config.yaml").write_text(yaml.safe_dump(config))
    nearer = reconstruct("m", *xrays(), output="mean", device="cpu")
    assert np.abs(nearer.hu.astype(int) - by_run.hu).max() >= 1
