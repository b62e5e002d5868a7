"""Multi-scale structural similarity of volumes (Wang, Simoncelli, Bovik, Asilomar 2003, in three dimensions).

Contrast and structure are compared at every scale, luminance at the coarsest only; each scale is the mean of 2x2x2
blocks of the one before, and its part is raised to the weight that the paper fitted to human judgements of images.
Window: the paper's Gaussian of 11 voxels, sigma 1.5, separable, inside the volume only.

The paper's five scales need 176 voxels a side. A smaller volume gets as many scales as its shortest side allows (4 at
128, 3 at 64, 2 at 32, 1 at 16) with their weights scaled to sum to 1, so compare values at one size only. Below 11
voxels the window shrinks to the largest odd side that fits.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from diffux2ct.evaluation.ssim import K1, K2, window_side

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents from the finest scale to the coarsest."""

WINDOW, SIGMA = 11, 1.5


def scale_weights(shape: tuple[int, ...] | torch.Size) -> tuple[float, ...]:
    """The weights of the scales at which the window fits a volume of this shape; they sum to 1."""
    fitting = [weight for k, weight in enumerate(WEIGHTS) if k == 0 or min(shape) >> k >= WINDOW]
    return tuple(weight / sum(fitting) for weight in fitting)


def ms_ssim3d(
    a: Float64[Tensor, "b d h w"], b: Float64[Tensor, "b d h w"], *, data_range: float = 1.0
) -> Float64[Tensor, " b"]:
    """MS-SSIM of two batches of volumes whose values span ``data_range``: 1 for equal volumes.

    A scale whose mean structure term is negative (anticorrelated volumes) counts as 0, and so does the volume.

    Raises:
        ValueError: a side is shorter than 3 voxels.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    weights = scale_weights(a.shape[1:])
    result = a.new_ones(len(a))
    for scale, weight in enumerate(weights):
        if scale:
            a, b = (F.avg_pool3d(volume[:, None], 2)[:, 0] for volume in (a, b))
        luminance, structure = _terms(a, b, c1, c2)
        if scale == len(weights) - 1:
            structure *= luminance
        result *= structure.mean(dim=(1, 2, 3)).clamp(min=0) ** weight
    return result


def _terms(a: Tensor, b: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps, from means of s = a + b, d = a - b and their squares (see ssim.py)."""
    side = window_side(a.shape[1:], WINDOW)
    s, d = a + b, a - b
    mean_s, mean_d, mean_ss, mean_dd = (_blurred(image, side) for image in (s, d, s * s, d * d))
    mean_s.square_()
    mean_d.square_()
    var_s, var_d = mean_ss.sub_(mean_s), mean_dd.sub_(mean_d)
    luminance = (mean_s - mean_d + 2 * c1) / (mean_s + mean_d + 2 * c1)
    structure = (var_s - var_d + 2 * c2) / (var_s + var_d + 2 * c2)
    return luminance, structure


def _blurred(volume: Tensor, side: int) -> Tensor:
    """Gaussian means of [B, D, H, W] where the whole window lies inside.

    As products with banded matrices, one an axis: at these sizes several times as fast as a convolution on the CPU.
    """
    batch, depth, height, width = volume.shape
    volume = volume @ _band(width, side, volume)
    volume = _band(height, side, volume).T @ volume
    volume = _band(depth, side, volume).T @ volume.reshape(batch, depth, -1)
    return volume.reshape(batch, depth - side + 1, height - side + 1, width - side + 1)


def _band(length: int, side: int, like: Tensor) -> Tensor:
    """[length, length - side + 1]: column i holds the window at i."""
    offsets = torch.arange(side, dtype=like.dtype, device=like.device) - side // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    column = torch.arange(length - side + 1, device=like.device)
    matrix = like.new_zeros(length, length - side + 1)
    for k, value in enumerate(window / window.sum()):
        matrix[column + k, column] = value
    return matrix
