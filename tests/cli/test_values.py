"""Every value of every key is taken, or refused in one line."""

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffux2ct.arguments import read
from diffux2ct.cli import drr, evaluate, prepare, reconstruct, train
from diffux2ct.cli.hydra_app import _dotted, _explain
from diffux2ct.errors import UserError

VALUES = ("abc", -1, float("nan"), None, "", "maybe", 1e99)


def composed(command: str, *overrides: str):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose(command, list(overrides))


def check_preparation(cfg) -> None:
    cfg = read(prepare.Preparation, cfg)
    recipe = read(prepare.Recipe, cfg.dataset.prepare, "dataset.prepare.")
    prepare.idle_settings(cfg, recipe)


COMMANDS = {
    "drr": (["ct=a", "out=b"], lambda cfg: drr.idle_settings(read(drr.Radiograph, cfg))),
    "evaluate": (["ckpt=a"], lambda cfg: read(evaluate.Evaluation, cfg)),
    "export_x2ct": (["data=a", "out=b"], lambda cfg: read(prepare.Export, cfg)),
    "export_model": (["ckpt=a", "out=b"], lambda cfg: read(train.Export, cfg)),
    "prepare": (["raw=a"], check_preparation),
    "train": (["size=tiny"], train.checked),
    "reconstruct": (["ckpt=a", "frontal=b", "lateral=c", "out=d"], lambda cfg: read(reconstruct.Request, cfg)),
}


def wrong(cfg, check, command) -> list[str]:
    """Keys with a value that ends in neither success nor one line."""
    bad = []
    for key in _dotted(OmegaConf.to_container(cfg)):
        for value in VALUES:
            changed = cfg.copy()
            OmegaConf.set_struct(changed, False)
            OmegaConf.update(changed, key, value, merge=False)
            try:
                check(changed)
            except (UserError, OmegaConfBaseException) as error:
                line = str(error) if isinstance(error, UserError) else _explain(error, command)
                if "\n" in line:
                    bad.append(f"{key}={value}: {line}")
            except Exception as error:
                bad.append(f"{key}={value}: {type(error).__name__} {error}"[:160])
    return bad


# Training checks a whole config each time: a minute and a half.
@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * (c == "train")) for c in COMMANDS])
def test_every_value_of_every_key_is_taken_or_refused_in_one_line(command):
    overrides, check = COMMANDS[command]
    cfg = composed(command, *overrides)
    check(cfg)
    assert wrong(cfg, check, command) == []
