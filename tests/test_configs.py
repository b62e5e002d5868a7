"""Every option of every group composes and builds; the documented runs have the documented settings."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffux2ct import build
from diffux2ct.evaluation.fidelity.protocols import PROTOCOLS
from diffux2ct.evaluation.metric import function_names
from diffux2ct.evaluation.metric_set import DEFAULT_FAMILIES, FAMILIES

CONFIGS = Path(__file__).parents[1] / "configs"
OPTIONS = sorted(
    (p.parent.relative_to(CONFIGS).as_posix(), p.stem)
    for p in CONFIGS.glob("*/**/*.yaml")
    if p.parent.name != "experiment"
)
EXPERIMENTS = sorted(p.stem for p in CONFIGS.glob("experiment/*.yaml"))
GROUPS = {group: [option for g, option in OPTIONS if g == group] for group, _ in OPTIONS}
NUM_ROUNDS = max(len(options) for options in GROUPS.values())


def composed(*overrides: str, config: str = "train"):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose(config, overrides=list(overrides), return_hydra_config=False)


def build_all(cfg) -> None:
    with torch.device("meta"):
        model = build.build_reconstructor(cfg)
    settings = build.build_settings(cfg)
    build.build_optimizer(cfg)([torch.nn.Parameter(torch.zeros(1))])
    assert sum(p.numel() for p in model.parameters()) > 1000
    assert settings.max_steps >= 1
    assert build.build_sampler(cfg.sampler)
    assert set(cfg.metrics.names) <= set(function_names())
    assert set(cfg.metrics.families) <= set(FAMILIES)
    assert cfg.metrics.protocol in PROTOCOLS
    assert cfg.name
    build.plain(cfg)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_builds(group, option):
    base = ["experiment=demo"] + (["dataset=folder"] if group.startswith("dataset/") else [])
    build_all(composed(*base, f"{group}={option}", "dataset.root=/nowhere", "dataset.size=32"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds(experiment):
    build_all(composed(f"experiment={experiment}", "dataset.root=/nowhere"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("round_", range(NUM_ROUNDS))
def test_every_option_of_every_group_builds_in_every_experiment(experiment, round_):
    """Round k takes the k-th option of all groups at once: a few rounds have every option in every experiment."""
    chosen = {group: options[round_ % len(options)] for group, options in GROUPS.items()}
    if sets_conditioning(experiment):  # keys that the other kinds of conditioning do not have
        chosen["conditioning"] = "implicit"
    if (chosen["model"], chosen["conditioning"]) == ("icm_reg", "none"):  # a regression on nothing
        chosen["conditioning"] = "expand"
    for group in nested_groups_without_place(chosen["dataset"]):
        del chosen[group]
    overrides = [f"{group}={option}" for group, option in chosen.items()]
    build_all(composed(f"experiment={experiment}", *overrides, "dataset.root=/nowhere", "dataset.size=32"))


@pytest.mark.parametrize("scale", [[], ["scale=laptop"]], ids=["paper", "laptop"])
@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("no_projection_loss", {"loss.projection_weight"}),
        ("no_view_modulators", {"conditioning.fusion"}),
        ("no_learnable_embedding", {"conditioning.learnable_embedding"}),
        ("resnet_fusion", {"conditioning.fusion"}),
        ("axis_fusion", {"conditioning.uv_fusion"}),
        ("baseline", {"conditioning._target_", "conditioning.size", "conditioning.uv_fusion"}),
    ],
)
def test_a_row_of_table_3_changes_one_thing(row, changed, scale):
    full, ablated = (
        flat({key: cfg[key] for key in cfg if key not in ("name", "run_dir", "model")})
        for cfg in (composed(f"experiment=table3_{name}", *scale) for name in ("full", row))
    )
    assert {key for key in full | ablated if full.get(key) != ablated.get(key)} == changed


def test_rows_at_the_laptop_s_scale_have_one_budget():
    tables = [name for name in EXPERIMENTS if name.startswith("table")]
    cfgs = [composed(f"experiment={name}", "scale=laptop") for name in tables]
    budgets = {
        (c.trainer.max_steps, c.trainer.max_epochs, c.trainer.batch_size, c.trainer.seed) for c in cfgs
    }
    assert budgets == {(500, None, 4, 0)}
    assert len({(c.dataset.root, c.dataset.size, c.optim.lr) for c in cfgs}) == 1


def flat(tree, prefix: str = "") -> dict:
    """Dotted keys and their values as written, interpolations not resolved."""
    found = {}
    for key, value in tree.items():
        nested = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        found |= flat(nested, f"{prefix}{key}.") if isinstance(nested, dict) else {f"{prefix}{key}": nested}
    return found


def sets_conditioning(experiment: str) -> bool:
    return "conditioning" in OmegaConf.load(CONFIGS / "experiment" / f"{experiment}.yaml")


def nested_groups_without_place(dataset: str) -> list[str]:
    """Groups below dataset/ that this one has no use for: phantoms are not prepared from scans."""
    text = (CONFIGS / "dataset" / f"{dataset}.yaml").read_text(encoding="utf-8")
    nested = [group for group in GROUPS if group.startswith("dataset/")]
    return [group for group in nested if f"- {group.split('/')[1]}:" not in text]


@pytest.mark.parametrize("config", ["evaluate", "prepare", "drr", "reconstruct", "segment", "summarize"])
def test_every_command_s_config_composes(config):
    assert composed(config=config)


@pytest.mark.parametrize(
    ("dataset", "steps"),
    [("lumbarv", 200_000), ("ctpelvic1k", 200_000), ("lidc_idri", 800_000), ("ctspine1k", 800_000)],
)
def test_the_default_is_the_paper_s_run(dataset, steps):
    cfg = composed(f"dataset={dataset}")
    assert (cfg.dataset.size, list(cfg.widths.channels), cfg.widths.num_blocks) == (128, [64, 128, 256], 2)
    assert (cfg.trainer.max_steps, cfg.optim._target_, cfg.optim.lr) == (steps, "torch.optim.Adam", 2e-4)
    assert (cfg.diffusion.prediction_type, cfg.diffusion.num_train_timesteps) == ("epsilon", 1000)
    assert (cfg.sampler._target_.rpartition(".")[2], cfg.sampler.num_inference_steps) == ("Ddpm", None)
    assert (cfg.loss.norm, cfg.loss.projection_weight, cfg.loss.projection_mode) == ("l1", None, "paper")
    assert cfg.name == f"paper-{dataset}"


def test_the_default_families_are_those_of_the_folder_names():
    """An evaluation's folder names what departs from the default, on which the config and the code must agree."""
    for protocol in PROTOCOLS:
        cfg = composed(f"metrics={protocol}", "ckpt=none", config="evaluate")
        assert tuple(cfg.metrics.families) == DEFAULT_FAMILIES
