"""Every option of every group composes and builds; the documented runs have the documented settings."""

import inspect
import itertools
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from omegaconf import OmegaConf

from diffux2ct import build
from diffux2ct.cli import train
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import function_names
from diffux2ct.evaluation.metric_set import DEFAULT_FAMILIES, FAMILIES

CONFIGS = Path(__file__).parents[1] / "configs"
OPTIONS = sorted(
    (p.parent.relative_to(CONFIGS).as_posix(), p.stem)
    for p in CONFIGS.glob("*/**/*.yaml")
    if p.parent.name not in ("experiment", "base")
)
EXPERIMENTS = sorted(p.stem for p in CONFIGS.glob("experiment/*.yaml"))
GROUPS = {group: [option for g, option in OPTIONS if g == group] for group, _ in OPTIONS}
NUM_ROUNDS = max(len(options) for options in GROUPS.values())
MODELS, SIZES = GROUPS["model"], ("paper", "small", "tiny")
DATASETS = [name for name in GROUPS["dataset"] if name != "folder"]  # its root must be given


def composed(*overrides: str, config: str = "train"):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose(config, overrides=list(overrides), return_hydra_config=False)


def build_all(cfg) -> None:
    cfg = build.resolved(cfg)
    with torch.device("meta"):
        model = build.build_reconstructor(cfg)
    settings = build.build_settings(cfg)
    build.build_optimizer(cfg)([torch.nn.Parameter(torch.zeros(1))])
    assert sum(p.numel() for p in model.parameters()) > 1000
    assert settings.max_steps >= 1
    assert build.build_sampler(cfg.sampler)
    assert set(cfg.metrics.names) <= set(function_names())
    assert cfg.name


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
    if experiment.endswith("_epsilon"):  # epsilon in any case
        chosen["objective"] = "epsilon"
    for group in nested_groups_without_place(chosen["dataset"]):
        del chosen[group]
    overrides = [f"{group}={option}" for group, option in chosen.items()]
    build_all(composed(f"experiment={experiment}", *overrides, "dataset.root=/nowhere", "dataset.size=32"))


@pytest.mark.parametrize("model", MODELS)
def test_every_size_of_every_model_builds(model):
    counts = []
    for size in SIZES:
        cfg = build.resolved(composed(f"model={model}", f"size={size}", "dataset=phantom"))
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in build.build_reconstructor(cfg).parameters()))
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 3


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("conditioning", GROUPS["conditioning"])
def test_every_config_resolves_as_cfg_job_resolve_does(model, conditioning):
    for size in SIZES:
        cfg = composed(f"model={model}", f"size={size}", f"conditioning={conditioning}")
        assert OmegaConf.to_container(cfg, resolve=True)["size"] == size


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if g in ("model", "conditioning", "sampler")])
def test_every_setting_of_our_classes_stands_in_its_config(group, option):
    """So that it can be typed as key=value, without a plus sign; all but what the data or a part settles."""
    settled = {"in_channels", "out_channels", "num_classes", "params"}
    for node in targets(OmegaConf.to_container(composed(f"{group}={option}"))):
        settings = inspect.signature(get_class(node["_target_"])).parameters
        assert set(settings) - settled <= node.keys() or not node["_target_"].startswith("diffux2ct."), node


def targets(tree):
    """The nodes with a class of their own, at any depth."""
    if isinstance(tree, dict):
        yield from [tree] if "_target_" in tree else []
        for part in tree.values():
            yield from targets(part)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_named_as_its_file_and_has_three_sizes_of_the_same_keys(model):
    cfg = composed(f"model={model}")
    assert (cfg.method, set(cfg.sizes)) == (model, set(SIZES))
    assert len({frozenset(values) for values in cfg.sizes.values()}) == 1


# lr, betas, batch size, epochs, warm-up, clipping, EMA, precision, schedule
PAPER = (2e-4, [0.9, 0.999], 2, None, 5000, 1.0, 0.9999, "bf16", "constant")
RECIPES = {
    "diffux2ct": PAPER,
    "vnet": PAPER,
    "backprojection_cnn": PAPER,
    "icm_reg": (2e-4, [0.9, 0.999], 4, 200, 0, 1.0, 0.9999, "bf16", "constant"),
    "x_ctrsnet_like": (2e-4, [0.5, 0.999], 4, 200, 0, 1.0, 0.9999, "bf16", "constant"),
    "posterior_flow": (2e-3, [0.9, 0.999], 4, None, 500, 1.0, 0.999, "bf16", "cosine"),
    "x2ct_gan": (2e-4, [0.5, 0.999], 4, 300, 0, None, None, "fp32", "constant"),
}


def recipe(cfg) -> tuple:
    keys = ("batch_size", "max_epochs", "warmup_steps", "grad_clip", "ema_decay", "precision", "lr_schedule")
    return (cfg.optim.lr, list(cfg.optim.betas), *(cfg.trainer[key] for key in keys))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_by_its_own_recipe(model):
    cfg = build.resolved(composed("dataset=lumbarv", f"model={model}"))
    assert recipe(cfg) == RECIPES[model]
    ours = "diffux2ct.training.optimizers.muon.Muon"
    assert cfg.optim._target_ == (ours if model == "posterior_flow" else "torch.optim.Adam")
    chosen = composed("dataset=lumbarv", f"model={model}", "optim=adamw")
    assert chosen.optim._target_ == "torch.optim.AdamW"
    assert cfg.trainer.max_steps == (None if cfg.trainer.max_epochs else 200_000)


@pytest.mark.parametrize("model", ["icm_reg", "x_ctrsnet_like", "x2ct_gan"])
def test_table_1_trains_each_baseline_by_its_own_recipe(model):
    own = composed("dataset=lumbarv", f"model={model}")
    table = composed(f"experiment=table1_{model}")
    for key in set(own) - {"name", "run_dir"}:
        assert own[key] == table[key], key


def test_overrides_win_over_a_recipe():
    words = ["model=x2ct_gan", "optim.lr=1e-3", "trainer.grad_clip=2", "trainer.max_steps=5"]
    cfg = composed(*words)
    assert (cfg.optim.lr, cfg.trainer.grad_clip) == (1e-3, 2)
    # The first limit that is reached ends training: 917 cases are 68 775 steps of 300 epochs.
    assert build.build_settings(cfg).with_steps_for(917).max_steps == 5
    cfg = composed(*words[:-1])
    assert build.build_settings(cfg).with_steps_for(917).max_steps == 68_775
    with pytest.raises(UserError, match=r"give trainer\.max_steps or trainer\.max_epochs"):
        build.build_settings(composed(*words[:-1], "trainer.max_epochs=null"))


def test_the_paper_to_the_letter_has_one_rate_and_nothing_else():
    cfg = composed("experiment=paper_literal")
    assert recipe(cfg)[4:] == (0, None, None, "bf16", "constant")
    settings = build.build_settings(cfg)
    assert {settings.lr_factor(step) for step in (0, 1, 4_999, 199_999)} == {1.0}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("epsilon", ("epsilon", False, "paper")), ("v", ("v", True, "snr")), ("x0", ("x0", True, "snr"))],
)
def test_an_objective_sets_process_and_loss_whose_keys_can_be_changed(objective, expected):
    cfg = composed(f"objective={objective}")
    process, loss = cfg.model.process, cfg.model.loss
    assert (process.prediction_type, process.zero_terminal_snr, loss.projection_mode) == expected
    changed = composed(f"objective={objective}", "loss.norm=l2", "diffusion.schedule=cosine").model
    assert (changed.loss.norm, changed.process.schedule) == ("l2", "cosine")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("scale", [[], ["scale=laptop"]], ids=["paper", "laptop"])
def test_ddpm_takes_its_own_steps_beside_any_experiment(experiment, scale):
    """No experiment sets the steps of a sampler that it does not choose."""
    plain, chosen = composed("sampler=ddpm"), composed(f"experiment={experiment}", *scale, "sampler=ddpm")
    assert chosen.sampler == plain.sampler


def test_runs_of_different_models_experiments_data_sets_and_sizes_have_names_of_their_own():
    datasets = [composed(f"dataset={name}").dataset.name for name in DATASETS]
    names: dict[str, tuple] = {}
    for experiment in ("paper", "demo", "table3_full", "table1_icm_reg"):
        cfg = composed(f"experiment={experiment}")
        for model, dataset, size in itertools.product(MODELS, datasets, SIZES):
            cfg.method, cfg.dataset.name, cfg.size = model, dataset, size
            assert cfg.name not in names, f"{cfg.name}: {(experiment, model, dataset, size)}, {names[cfg.name]}"
            names[cfg.name] = (experiment, model, dataset, size)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", "diffux2ct-lumbarv"),
        ("dataset=phantom model=icm_reg size=tiny", "icm_reg-phantom-tiny"),
        ("experiment=demo", "demo"),
        ("experiment=demo model=icm_reg", "demo-icm_reg"),
        ("experiment=demo dataset=lumbarv size=paper", "demo-lumbarv-paper"),
        ("experiment=pilot", "pilot"),
        ("experiment=table3_full", "table3_full-lumbarv"),
        ("experiment=table3_full scale=laptop", "table3_full-phantom_study-tiny-v"),
        ("experiment=table1_x2ct_gan dataset=lidc_idri", "table1_x2ct_gan-lidc_idri"),
        ("model=x2ct_gan trainer.max_steps=5 trainer.max_minutes=2", "x2ct_gan-lumbarv"),
        ("model=x2ct_gan name=mine", "mine"),
        ("objective=v", "diffux2ct-lumbarv-v"),
        ("dataset=phantom size=small objective=x0", "diffux2ct-phantom-small-x0"),
        ("objective=v model=icm_reg", "icm_reg-lumbarv"),  # which has none
        ("experiment=demo model=diffux2ct objective=epsilon", "demo-diffux2ct-epsilon"),
        ("experiment=table1_diffux2ct_v", "table1_diffux2ct_v-lumbarv"),
        ("experiment=table1_diffux2ct_v scale=laptop", "table1_diffux2ct_v-phantom_study-tiny"),
        ("experiment=table1_diffux2ct_epsilon scale=laptop", "table1_diffux2ct_epsilon-phantom_study-tiny"),
        ("dataset=folder dataset.root=a/clinic_1", "diffux2ct-folder-a-clinic_1"),
        ("experiment=pilot dataset.root='a/x(2)'", "pilot-a-x-2"),
        ("dataset=folder dataset.root=data/mine", "diffux2ct-folder-mine"),
        ("dataset=folder dataset.name=clinic dataset.root=a", "diffux2ct-clinic"),
    ],
)
def test_a_run_is_named_by_its_experiment_or_model_data_set_and_size(words, name):
    assert composed(*words.split()).run_dir == f"runs/{name}"


def test_folders_of_one_name_have_runs_of_their_own():
    roots = ["data/mine", "a/mine", "b/mine", "/disk/a/mine", "/disk/b/mine"]
    names = [composed("dataset=folder", f"dataset.root={root}").name for root in roots]
    assert len(set(names)) == len(names)
    assert all("mine" in name and len(name) < 40 for name in names)


def test_regions_of_phantoms_have_names_and_folders_of_their_own():
    sets = [composed("dataset=phantom", f"dataset.generate.region={r}").dataset for r in ("lumbar", "thorax")]
    assert [s.name for s in sets] == ["phantom", "phantom_thorax"]
    assert sets[0].root != sets[1].root
    assert composed("dataset=phantom_thorax").dataset == sets[1]


def test_a_data_set_has_the_size_of_its_folder_unless_one_is_given(tmp_path):
    words = ["dataset=folder", f"dataset.root={tmp_path}", "size=tiny"]
    assert composed(*words).dataset.size == 128  # of the preparation
    assert composed(*words, "dataset.prepare.size=64").model.size == 64
    (tmp_path / "dataset.json").write_text(json.dumps({"size": 48}))
    assert composed(*words).model.size == 48
    assert build.resolved(composed(*words)).dataset.size == 48
    assert composed(*words, "dataset.size=24").model.size == 24


def test_a_run_writes_the_size_of_its_folder(phantoms, tmp_path):
    words = ["size=tiny", "trainer.max_steps=1", "trainer.val_every=0", "trainer.device=cpu"]
    words += ["dataset=folder", f"dataset.root={phantoms}", f"run_dir={tmp_path / 'run'}"]
    train.run(composed(*words, "model=backprojection_cnn", "trainer.checkpoint_every=0"))
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (saved.dataset.size, saved.method, saved.size) == (16, "backprojection_cnn", "tiny")
    # Nothing of what other models are made of.
    assert not {"conditioning", "diffusion", "loss", "sizes", "recipe"} & set(saved)
    with pytest.raises(UserError, match="cannot be read at 12; train with dataset.size=16 or 8"):
        train.run(composed(*words, "dataset.size=12"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("size=huge", "size=huge: choose one of paper, small, tiny"),
        ("size=32", "choose one of paper, small, tiny for the network, or dataset.size=32 for voxels a side"),
        ("loss=snr", "loss=snr: is no choice; choose objective=epsilon, v or x0"),
        ("trainer=laptop", r"trainer=laptop: is no choice; give one of its keys as trainer\.KEY=VALUE"),
    ],
)
def test_a_word_that_names_no_choice_ends_in_one_line(word, message):
    with pytest.raises(UserError, match=message):
        train.run(composed("experiment=demo", word))


# Settings of the implicit conditioning alone that are not null.
OF_IMPLICIT = ("size", "uv_fusion", "fusion", "learnable_embedding", "checkpoint_decoder")


@pytest.mark.parametrize("scale", [[], ["scale=laptop"]], ids=["paper", "laptop"])
@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("no_projection_loss", {"loss.projection_weight"}),
        ("no_view_modulators", {"conditioning.fusion"}),
        ("no_learnable_embedding", {"conditioning.learnable_embedding"}),
        ("resnet_fusion", {"conditioning.fusion"}),
        ("axis_fusion", {"conditioning.uv_fusion"}),
        ("baseline", {"conditioning._target_"} | {f"conditioning.{key}" for key in OF_IMPLICIT}),
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
    budgets = {(c.trainer.max_steps, c.trainer.max_epochs, c.trainer.batch_size, c.trainer.seed) for c in cfgs}
    assert budgets == {(500, None, 4, 0)}
    assert len({(c.dataset.root, c.dataset.size, c.optim.lr, c.size) for c in cfgs}) == 1
    assert {tuple(c.dataset.generate.values())[:3] for c in cfgs} == {(256, 8, 32)}
    assert {c.trainer.lr_schedule for c in cfgs} == {"cosine"}


def test_the_laptop_s_scale_shortens_a_recipe_and_adds_nothing_to_it():
    full, gan = (composed(f"experiment={name}", "scale=laptop").trainer for name in ("table3_full", "table1_x2ct_gan"))
    assert (full.warmup_steps, full.ema_decay, full.grad_clip, full.precision) == (20, 0.99, 1.0, "bf16")
    assert (gan.warmup_steps, gan.ema_decay, gan.grad_clip, gan.precision) == (0, None, None, "fp32")


def test_demo_and_scale_laptop_train_alike_but_for_the_steps():
    demo, scaled = composed("experiment=demo"), composed("scale=laptop", "model=posterior_flow")
    assert (demo.trainer.max_steps, scaled.trainer.max_steps) == (480, 1000)
    demo.trainer.max_steps = 1000
    for key in set(demo) - {"name", "run_dir", "dataset"}:
        assert demo[key] == scaled[key], key


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


@pytest.mark.parametrize("config", ["evaluate", "prepare", "drr", "reconstruct", "summarize"])
def test_every_command_s_config_composes(config):
    assert composed(config=config)


@pytest.mark.parametrize(
    ("dataset", "steps"),
    [("lumbarv", 200_000), ("ctpelvic1k", 200_000), ("lidc_idri", 800_000), ("ctspine1k", 800_000)],
)
def test_the_default_is_the_paper_s_run(dataset, steps):
    cfg = composed(f"dataset={dataset}")
    denoiser = cfg.model.denoiser
    assert (cfg.dataset.size, list(denoiser.channels), denoiser.num_blocks) == (128, [64, 128, 256], 2)
    assert (cfg.trainer.max_steps, cfg.optim._target_, cfg.optim.lr) == (steps, "torch.optim.Adam", 2e-4)
    assert (cfg.diffusion.prediction_type, cfg.diffusion.num_train_timesteps) == ("epsilon", 1000)
    assert (cfg.sampler._target_.rpartition(".")[2], cfg.sampler.num_inference_steps) == ("Ddpm", None)
    assert (cfg.loss.norm, cfg.loss.projection_weight, cfg.loss.projection_mode) == ("l1", None, "paper")
    assert (cfg.loss.min_snr_gamma, cfg.diffusion.schedule, cfg.diffusion.timesteps) == (None, "linear", None)
    assert cfg.name == f"diffux2ct-{dataset}"


def test_the_default_families_are_those_of_the_folder_names():
    """An evaluation's folder names what departs from the default, on which the config and the code must agree."""
    metrics = composed("ckpt=none", config="evaluate").metrics
    assert tuple(metrics.families) == DEFAULT_FAMILIES
    assert set(DEFAULT_FAMILIES) <= set(FAMILIES)
