"""A made-up data set and a method that is random but depends on its X-rays, for tests of the runner."""

import csv
import json

import torch
from torch import nn

SIZE, SPACING = 16, (2.0, 2.0, 2.0)
ORIGINS = {"case0": (-10.0, 20.5, 300.0), "case1": (1.0, 2.0, 3.0), "case2": (0.0, -7.25, 11.0)}
NAMES = list(ORIGINS)


class BackProjector(nn.Module):
    """The mean of both X-rays smeared through the volume, plus noise: random, and depends on its X-rays."""

    def __init__(self, noise=0.1):
        super().__init__()
        self.noise, self.calls = noise, []

    def reconstruct(self, xrays, *, generator=None, scale=1.0):
        assert torch.is_inference_mode_enabled()
        frontal, lateral = xrays["frontal"], xrays["lateral"]
        self.calls.append((self.training, scale, {view: image.clone() for view, image in xrays.items()}))
        volume = (frontal[:, :, :, None, :] + lateral[:, :, :, :, None]) / 2
        return scale * volume + self.noise * torch.randn(volume.shape, generator=generator)


def read(out):
    return json.loads((out / "metrics.json").read_text()), list(csv.DictReader((out / "per_case.csv").open()))


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
