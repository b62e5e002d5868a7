"""A segmentation network from training to Dice, by the commands' own functions."""

import json
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module

from diffux2ct import build
from diffux2ct.cli import evaluate, train
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.errors import UserError
from diffux2ct.training.checkpoints import file as checkpoint

VNET = ("model=vnet", "sizes.tiny.channels=[4,4]", "sizes.tiny.convs=[1,1]")


def config(name: str, *overrides: str):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return hydra_compose(name, overrides=["device=cpu", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("segment")


def trained(compose, folder: Path, name: str, *overrides: str) -> Path:
    run_dir = folder / name
    if not run_dir.exists():
        train.run(compose(f"run_dir={run_dir}", f"name={name}", "trainer.max_steps=2", *overrides))
    return run_dir


@pytest.fixture
def vnet(compose, folder: Path) -> Path:
    # Validation samples reconstructions, which this model has none of: it is passed over.
    return trained(compose, folder, "vnet", *VNET, "trainer.val_every=1")


def test_training_says_what_comes_next(compose, tmp_path, capsys):
    trained(compose, tmp_path, "v", *VNET, "dataset.labels=[spine]", "trainer.max_steps=1")
    assert f"next: python evaluate.py ckpt={tmp_path / 'v'}" in capsys.readouterr().out
    assert list(checkpoint.load(tmp_path / "v")["optimizers"]) == ["segmentation"]


def test_a_resumed_run_equals_an_undisturbed_one(compose, tmp_path):
    trained(compose, tmp_path, "parts", *VNET, "trainer.max_steps=1")
    train.run(compose(f"run_dir={tmp_path / 'parts'}", "name=parts", *VNET, "trainer.max_steps=2"))
    trained(compose, tmp_path, "whole", *VNET)
    parts, whole = (checkpoint.load(tmp_path / name)["model"] for name in ("parts", "whole"))
    for key, value in whole.items():
        assert value.equal(parts[key]), key


def test_true_volumes_alone(vnet, phantoms, capsys):
    evaluate.run(config("evaluate", f"ckpt={vnet}", "max_cases=2"))
    record = json.loads((vnet / "evaluation" / "phantom-test-first2" / "dice.json").read_text())
    structures = ["sacrum", "left_hip", "right_hip", "lumbar_spine"]
    assert record["structures"] == structures
    assert list(record["true"]) == [*structures, "average", "foreground"]
    assert (record["num_cases"], record["root"], record["split"]) == (2, str(phantoms), "test")
    assert "reconstructed" not in record
    assert "lumbar_spine" in capsys.readouterr().out


def test_reconstructions_of_an_evaluated_run(vnet, compose, folder, phantoms, capsys):
    regressor = trained(compose, folder, "regressor", "model=x_ctrsnet_like")
    with pytest.raises(UserError, match=r"never evaluated; first: python evaluate.py ckpt="):
        evaluate.run(config("evaluate", f"ckpt={vnet}", f"run={regressor}"))
    evaluate.run(config("evaluate", f"ckpt={regressor}", "max_cases=2", "batch_size=2"))
    evaluate.run(config("evaluate", f"ckpt={vnet}", f"run={regressor}"))
    (made,) = regressor.glob("evaluation/*/dice.json")
    record = json.loads(made.read_text())
    assert (record["num_cases"], record["evaluation"]) == (2, str(made.parent))
    assert [row["case_id"] for row in record["cases"]] == [
        case.case_id for case in PreparedDataset(phantoms, "test").cases[:2]
    ]
    assert set(record["reconstructed"]) == set(record["true"])
    evaluate.run(config("evaluate", f"ckpt={vnet}", f"run={made.parent}", f"out={folder / 'other'}"))
    assert json.loads((folder / "other" / "dice.json").read_text())["cases"] == record["cases"]
    assert "reconstructed" in capsys.readouterr().out
    with pytest.raises(UserError, match="train cases|no labelled case"):
        evaluate.run(config("evaluate", f"ckpt={vnet}", f"run={regressor}", "split=val"))
    with pytest.raises(UserError, match=r"run=.*regressor.*reconstructs by itself; leave run= out"):
        evaluate.run(config("evaluate", f"ckpt={regressor}", f"run={made.parent}"))


def test_settings_without_effect_on_a_segmentation_network_are_named(vnet, capsys):
    evaluate.run(config("evaluate", f"ckpt={vnet}", "max_cases=1", "seed=3", "metrics.protocol=x2ct"))
    warned = capsys.readouterr().err
    assert "warning: metrics.protocol seed: no effect on a segmentation network" in warned
    assert (vnet / "evaluation" / "phantom-test-first1" / "dice.json").is_file()


def test_a_segmentation_network_has_no_validation_of_reconstructions(compose):
    assert build.build_validator(compose(*VNET, "trainer.val_every=1")) is None
    assert build.build_validator(compose("model=x_ctrsnet_like", "trainer.val_every=1")) is not None


def test_several_evaluations_are_told_apart(tmp_path):
    for name in ("a", "b", ".partial-c"):
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        (tmp_path / "evaluation" / name / "metrics.json").write_text('{"split": "val"}')
    with pytest.raises(UserError, match=r"several evaluations \(a, b\)"):
        evaluate.find_evaluation(tmp_path)
    one = evaluate.find_evaluation(tmp_path / "evaluation" / "b")
    assert evaluate.data_of(one) == {"split": "val", "root": None}
    (one / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        evaluate.data_of(one)
