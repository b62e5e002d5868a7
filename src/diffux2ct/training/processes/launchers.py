"""Launchers of a sweep: plugins of Hydra that come with an extra, checked before a run begins."""

import shutil
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

from diffux2ct.errors import UserError

# Options of `launcher` that come with an extra: its name, and the plugin's package.
LAUNCHERS = {
    "slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
}


def check_launcher(arguments: Sequence[str]) -> None:
    """UserError where the command line names a launcher without its plugin or Slurm, or outside of a sweep."""
    chosen = [word.partition("=")[2] for word in arguments if word.startswith("launcher=")]
    name = chosen[-1] if chosen else ""
    if name not in LAUNCHERS:
        return
    extra, plugin = LAUNCHERS[name]
    if find_plugin(plugin) is None:
        raise UserError(
            f"launcher={name}: its plugin is not installed; pip install -c constraints.txt 'diffux2ct[{extra}]'"
        )
    if not {"-m", "--multirun", "--help", "--cfg", "-h", "-c"} & set(arguments):
        raise UserError(f"launcher={name}: starts the runs of a sweep; add -m (scripts/train_slurm.sh: one run)")
    if name == "slurm" and {"-m", "--multirun"} & set(arguments) and shutil.which("srun") is None:
        raise UserError("launcher=slurm: this machine has no srun; start it on a Slurm cluster's login node")


def find_plugin(name: str) -> ModuleSpec | None:
    """A Hydra plugin's spec; None where it is not installed."""
    try:
        return find_spec(name)
    except ModuleNotFoundError:  # no plugin at all
        return None
