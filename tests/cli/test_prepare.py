"""``prepare_dataset.py`` names the settings that a data set's preparation does not use."""

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from diffux2ct.arguments import read
from diffux2ct.cli.prepare import Preparation, Recipe, idle_settings


@pytest.mark.parametrize(
    ("words", "idle", "used"),
    [
        ("", {"dataset.size", "dataset.window", "dataset.prepare.xrays"}, {"dataset.prepare.labels", "dataset.root"}),
        ("size=64", {"dataset.prepare.size"}, {"size", "dataset.prepare.spacing"}),
        ("dataset=ctspine1k out=a", {"dataset.prepare.labels", "dataset.root"}, {"dataset.prepare.origins"}),
        ("dataset=x2ct", {"dataset.prepare.labels"}, {"dataset.prepare.xrays", "dataset.prepare.size"}),
        ("dry_run=true", {"contact_sheet"}, {"strict", "raw", "out"}),
    ],
)
def test_settings_that_a_source_does_not_use_are_named(words, idle, used):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = read(Preparation, compose("prepare", ["raw=a", *words.split()]))
    recipe = read(Recipe, OmegaConf.to_container(cfg.dataset.prepare, resolve=True))
    got = idle_settings(cfg, recipe).keys()
    assert idle <= got
    assert not used & got
