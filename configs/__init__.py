"""The Hydra configs, installed as the package ``diffux2ct.configs``."""
