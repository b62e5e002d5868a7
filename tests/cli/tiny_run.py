"""Composing a config and running reconstruct.py on it, for its tests."""

import SimpleITK as sitk
from hydra import compose, initialize_config_module

from diffux2ct.cli.reconstruct import run
from diffux2ct.types import VIEWS

SIZE = 16


def composed(name, *overrides):
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        return compose(name, list(overrides))


def reconstruct(run_folder, xrays, out, *overrides):
    files = [f"{view}={xrays / view}.npy" for view in VIEWS]
    run(composed("reconstruct", f"ckpt={run_folder}", *files, f"out={out}", "device=cpu", "precision=fp32", *overrides))
    return sitk.ReadImage(str(out / "reconstruction.nii.gz"))
