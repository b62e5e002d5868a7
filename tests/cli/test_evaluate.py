"""The folder of an evaluation, which every setting that is not the default must name."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import OmegaConf

from diffux2ct.arguments import read
from diffux2ct.cli.evaluate import _RECONSTRUCTION, _SAYS_NOTHING, Evaluation, changes, default_folder, default_settings
from diffux2ct.diffusion.consistency import Consistency
from diffux2ct.diffusion.samplers.ddim import Ddim
from diffux2ct.diffusion.samplers.ddpm import Ddpm

TRAINED = OmegaConf.create(
    {"dataset": {"name": "phantom", "root": "data/phantom"}, "sampler": {"name": "ddim", "eta": 0.0}}
)
SAMPLING = {"sampler": Ddim(), "perturbation": "random"}
OTHER = {
    "root": "elsewhere/phantom", "split": "val", "weights": "raw", "xray_source": "shuffled", "seed": "4",
    "precision": "fp32", "batch_size": "2", "max_cases": "3", "metrics.protocol": "x2ct",
    "metrics.names": "[psnr3d]", "metrics.families": "[bones]", "metrics.segmenter": "runs/vnet",
    "metrics.weights": "weights", "uncertainty": "true",
    "planted.diameters": "[8,12.5]", "planted.contrast": "30",
    "planted.displacement": "5", "planted.seed": "4",
}  # fmt: skip


def settings(*overrides: str) -> Evaluation:
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = hydra_compose("evaluate", ["ckpt=runs/demo", *overrides])
    return replace(read(Evaluation, cfg), split="test" if cfg.split == "auto" else cfg.split)


def folder(*overrides: str, sampling=SAMPLING, path="runs/demo/checkpoints/last.pt") -> str:
    found = default_folder(Path(path), TRAINED, settings(*overrides), sampling)
    assert found.parent == Path("runs/demo/evaluation")
    return found.name


def test_defaults_name_only_data_split_and_sampler():
    assert [key for key, _ in changes(replace(settings(), split="auto"))] == ["ckpt"]
    assert folder() == "phantom-test-ddim50"
    assert folder("num_report_cases=0", "device=cpu", "out=x", "interval.alpha=0.2") == folder()
    assert folder(sampling={}) == "phantom-test-direct"
    # DDPM without a number takes all steps of the training.
    assert folder(sampling={"sampler": Ddpm(), "perturbation": "random"}) == "phantom-test-ddpm"


def test_every_key_of_the_schema_that_changes_numbers_changes_the_name():
    defaults = default_settings()
    keys = {
        key
        for key in defaults
        if key not in ("defaults", "hydra", "sampler", "metrics", "planted", *_RECONSTRUCTION, *_SAYS_NOTHING)
    }
    keys |= {f"{group}.{key}" for group in ("metrics", "planted") for key in defaults[group]}
    assert keys == set(OTHER)
    names = [folder(f"{key}={value}") for key, value in OTHER.items()]
    assert len({*names, folder()}) == len(names) + 1
    assert folder("uncertainty=true", "num_samples=4") == "phantom-test-ddim50-uncertainty4"
    assert folder("seed=4", "precision=fp32", "max_cases=3") == "phantom-test-ddim50-seed4-fp32-first3"


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": Ddim(eta=0.5)},
        {"sampler": Ddim(num_inference_steps=10)},
        {"sampler": Ddpm()},
        {"perturbation": "zero"},
    ],
)
def test_every_setting_of_the_sampler_is_named(change):
    assert folder(sampling=SAMPLING | change) != folder()


def test_paths_of_one_name_are_told_apart_and_the_runs_own_folder_is_the_default():
    assert folder("metrics.segmenter=a/vnet") != folder("metrics.segmenter=b/vnet")
    assert folder("root=a/lumbarv") != folder("root=b/lumbarv")
    assert folder("root=data/phantom") == folder()
    assert folder(path="runs/demo/checkpoints/best.pt") == "phantom-test-ddim50-best"


def test_the_order_of_families_is_no_other_evaluation():
    families = default_settings()["metrics"]["families"]
    assert folder(f"metrics.families=[{','.join(reversed(families))}]") == folder()


def test_long_names_are_cut_and_stay_apart():
    first, second = ([f"metrics.names=[{','.join(f'my_package.metric{i}' for i in range(n))}]"] for n in (30, 31))
    assert folder(*first) != folder(*second)
    assert max(len(folder(*first)), len(folder(*second))) <= 200


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        ({"output": "mean"}, "mean"),
        ({"output": "sample", "num_inference_steps": 5}, "sample-steps5"),
        ({"output": "ensemble", "num_inference_steps": 2, "num_samples": 8}, "ensemble-samples8-steps2"),
        ({"output": "sample", "num_inference_steps": 5, "blend": 0.5}, "sample-steps5-blend0.5"),
        ({"output": "mean", "consistency": Consistency(3, "siddon")}, "mean-consistency3-siddon"),
        (SAMPLING | {"consistency": Consistency(3)}, "ddim50-consistency3"),
    ],
)
def test_the_output_and_consistency_are_named(sampling, name):
    assert folder(sampling=sampling) == f"phantom-test-{name}"
