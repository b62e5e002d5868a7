"""The Hydra configs, installed as the package ``diffux2ct.configs``."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

# The default of evaluate.py and reconstruct.py: the run's own sampler, of which any setting may be changed.
ConfigStore.instance().store("own", OmegaConf.create({}, flags={"struct": False}), group="sampler")
