"""``scripts/export_model.py ckpt= out=``: a run's model for others, without what only training needs."""

from omegaconf import DictConfig

from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.command_line import as_typed, command


def run(cfg: DictConfig) -> None:
    """Write the model folder ``cfg.out`` from the run or checkpoint ``cfg.ckpt``."""
    # Imported here so that --help answers at once.
    from diffux2ct.load import export_model

    out = export_model(str(cfg.ckpt), str(cfg.out))
    print(f"model: {out}\nnext: {command('evaluate')} {as_typed('ckpt', str(out))}")


def main() -> None:
    """Console entry."""
    hydra_app("export_model", run)
