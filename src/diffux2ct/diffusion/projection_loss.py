"""The geometry projection loss (paper Eq. 9)."""

import torch
from torch import Tensor

from diffux2ct.types import Volume
from diffux2ct.xray.joseph import mean_projections


def projection_distance(prediction: Volume, truth: Volume) -> Tensor:
    """Mean absolute difference of the three orthogonal mean projections, per sample [B] (paper Eq. 9).

    The printed squared sum over pixels would outweigh the noise loss several hundredfold with lambda = 1/T;
    the mean does not (docs/method.md, errata).
    """
    pairs = zip(mean_projections(prediction), mean_projections(truth), strict=True)
    return torch.stack([(a - b).abs().flatten(1).mean(1) for a, b in pairs]).mean(0)
