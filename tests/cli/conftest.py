import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from tests.cli.tiny_run import SIZE, composed

from diffux2ct import build
from diffux2ct.cli.drr import run as synthesize
from diffux2ct.training.checkpoints import file as checkpoint
from diffux2ct.types import VIEWS


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with an untrained tiny model: enough to see what goes in and what comes out."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    cfg = composed(
        "train",
        "experiment=demo",
        "model=diffux2ct",
        f"dataset.size={SIZE}",
        f"dataset.root={folder / 'none'}",
        "sampler.num_inference_steps=2",
    )
    torch.manual_seed(0)
    model = build.build_reconstructor(cfg)
    with torch.no_grad():  # some layers start at zero, and would hide the X-rays
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    checkpoint.save(
        folder / "checkpoints" / "last.pt", {"model": model.state_dict(), "config": build.plain(cfg), "step": 7}
    )
    return folder


@pytest.fixture(scope="module")
def xrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xrays")
    rows, cols = np.mgrid[: 2 * SIZE, : 2 * SIZE].astype(np.float32)
    np.save(folder / "frontal.npy", 6 * rows / rows.max())
    np.save(folder / "lateral.npy", 9 * cols / cols.max())
    for view in VIEWS:
        values = np.load(folder / f"{view}.npy")
        Image.fromarray(np.round(values[::-1] / values.max() * 65535).astype(np.uint16)).save(folder / f"{view}.png")
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A CT that is not centred at 0, with a bright ball off its middle, and X-rays of it."""
    folder = tmp_path_factory.mktemp("scan")
    z, y, x = (np.indices((32, 32, 32)) - 15.5) * 8.0
    hu = np.where((z - 40) ** 2 + (y + 30) ** 2 + (x - 50) ** 2 < 30**2, 1000, -1000).astype(np.int16)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((8.0, 8.0, 8.0))
    image.SetOrigin((-24.0, 76.0, 1000.0))
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    for name, overrides in {
        "drr": ["size=32", "spacing=8"],
        "small": ["size=32", "spacing=2"],
        "x2ct": ["size=32", "spacing=8", "camera=x2ct", "output=max", "shift=[0,0,9]"],
    }.items():
        synthesize(composed("drr", f"ct={folder / 'ct.nii.gz'}", f"out={folder / name}", *overrides))
    return folder
