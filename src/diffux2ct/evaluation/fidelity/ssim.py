"""Structural similarity of volumes: of their slices along each axis, and of 3D windows, from one pass over the voxels.

The definition is scikit-image's (Wang et al., IEEE TIP 13, 2004, with a uniform window): K1 = 0.01, K2 = 0.03, sample
covariance, and only windows that lie inside the image. It is what X2CT-GAN's script calls. Computed in double precision
throughout: a variance is a small difference of large sums, and in single precision it is lost where the image is bright
and flat.

With s = x + y and d = x - y in place of the two images, E[.] and V[.] over a window,

    SSIM = (E[s]^2 - E[d]^2 + 2 C1) (V[s] - V[d] + 2 C2) / ((E[s]^2 + E[d]^2 + 2 C1) (V[s] + V[d] + 2 C2)),

which needs window sums of four images instead of five, and is exactly 1 where d is 0.
"""

from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from diffux2ct.evaluation.metric import Metric, computes

WINDOW = 7
"""Side of the uniform window in voxels: scikit-image's default, which X2CT-GAN uses."""

K1, K2 = 0.01, 0.03

Volumes = Float64[Tensor, "b d h w"]


class Ssim(NamedTuple):
    """Of each slice across the three axes, and of the volume under 3D windows (None where it was not asked for)."""

    axial: Float64[Tensor, "b d"]
    coronal: Float64[Tensor, "b h"]
    sagittal: Float64[Tensor, "b w"]
    volume: Float64[Tensor, " b"] | None


def window_side(shape: tuple[int, ...] | torch.Size, largest: int = WINDOW) -> int:
    """``largest``, or the largest odd window that fits the shortest side. ValueError below 3 voxels."""
    shortest = min(shape)
    if shortest < 3:
        raise ValueError(f"SSIM needs at least 3 voxels per side, this volume has {tuple(shape)}")
    return min(largest, shortest if shortest % 2 else shortest - 1)


@computes(
    *(
        Metric(f"ssim_{axis}", f"SSIM {axis}", larger_is_better=True, about=f"of {axis} slices only, 7×7 window")
        for axis in ("axial", "coronal", "sagittal")
    )
)
def structural_similarity(a: Volumes, b: Volumes, *, data_range: float = 1.0, volume: bool = True) -> Ssim:
    """SSIM of two batches of volumes whose values span ``data_range``.

    A slice's value is the mean over its 7x7 windows; the volume's is the mean over 7x7x7 windows. The window shrinks
    to the largest odd side that fits. volume: False leaves the 3D part out.

    Runs through the axial slices once, keeping sums over the last 7 of them, so that one slice's images (and not the
    volume's) lie in the processor's cache, and the axes share window sums. ValueError: a side below 3 voxels.
    """
    batch, depth, height, width = a.shape
    side = window_side(a.shape[1:])
    flat, cube = _Terms(side**2, data_range, a), _Terms(side**3, data_range, a)
    axial = a.new_empty(batch, depth)
    coronal = a.new_zeros(batch, height, width - side + 1)
    sagittal = a.new_zeros(batch, height - side + 1, width)
    whole = a.new_zeros(batch)
    recent: deque[Tensor] = deque()
    slab = a.new_zeros(4, batch, height, width)  # sum of the last `side` slices
    for z in range(depth):
        images = _four_images(a[:, z], b[:, z])
        axial[:, z] = flat.similarity(_window_sums(_window_sums(images, side, -1), side, -2)).mean(dim=(1, 2))
        recent.append(images)
        slab += images
        if z >= side:
            slab -= recent.popleft()
        if z < side - 1:
            continue
        rows = _window_sums(slab, side, -1)
        coronal += flat.similarity(rows)
        sagittal += flat.similarity(_window_sums(slab, side, -2))
        if volume:
            whole += cube.similarity(_window_sums(rows, side, -2)).mean(dim=(1, 2))
    positions = depth - side + 1
    return Ssim(axial, coronal.mean(2) / positions, sagittal.mean(1) / positions, whole / positions if volume else None)


class _Terms:
    """SSIM from sums over windows of ``count`` voxels."""

    def __init__(self, count: int, data_range: float, like: Tensor) -> None:
        self.count = count
        self.c1 = like.new_tensor(2 * (K1 * data_range * count) ** 2)
        self.c2 = 2 * (K2 * data_range) ** 2 * (count - 1)

    def similarity(self, sums: Tensor) -> Tensor:
        """Sums [4, ...] of s, d, s^2, d^2 -> SSIM [...], the fraction above with both sides times its window counts."""
        s, d = sums[0], sums[1]
        spread = torch.addcmul(sums[2:], sums[:2], sums[:2], value=-1 / self.count)  # (count - 1) V[s], V[d]
        spread[0] += self.c2
        square = torch.addcmul(self.c1, s, s)
        above = torch.addcmul(square, d, d, value=-1).mul_(spread[0] - spread[1])
        below = square.addcmul_(d, d).mul_(spread[0] + spread[1])
        return above.div_(below)


def _four_images(a: Tensor, b: Tensor) -> Tensor:
    """s, d, s^2, d^2 as [4, ...]."""
    images = a.new_empty(4, *a.shape)
    torch.add(a, b, out=images[0])
    torch.sub(a, b, out=images[1])
    torch.mul(images[:2], images[:2], out=images[2:])
    return images


def _window_sums(x: Tensor, side: int, dim: int) -> Tensor:
    """Sums over ``side`` (odd, from 3) neighbours along ``dim``, where all of them exist.

    From sums of two: 7 = 2 + 2 + 2 + 1, four additions of whole images.
    """
    length = x.shape[dim] - side + 1
    twos = x.narrow(dim, 0, x.shape[dim] - 1) + x.narrow(dim, 1, x.shape[dim] - 1)
    total = twos.narrow(dim, 0, length) + x.narrow(dim, side - 1, length)
    for offset in range(2, side - 1, 2):
        total += twos.narrow(dim, offset, length)
    return total


# Multi-scale structural similarity (Wang, Simoncelli and Bovik, Asilomar 2003), in three dimensions.

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents from the finest scale to the coarsest."""

MS_WINDOW, SIGMA = 11, 1.5
"""Side of the Gaussian window and its standard deviation, in voxels."""


def scale_weights(shape: tuple[int, ...] | torch.Size) -> tuple[float, ...]:
    """The weights of the scales at which the window fits a volume of this shape; they sum to 1."""
    fitting = [weight for k, weight in enumerate(WEIGHTS) if k == 0 or min(shape) >> k >= MS_WINDOW]
    return tuple(weight / sum(fitting) for weight in fitting)


@computes(
    Metric(
        "ms_ssim3d",
        "MS-SSIM3D",
        larger_is_better=True,
        about="multi-scale, Gaussian 11×11×11 window, as many of Wang's 5 scales as fit (4 at 128)",
    )
)
def ms_ssim3d(a: Volumes, b: Volumes, *, data_range: float = 1.0) -> Float64[Tensor, " b"]:
    """MS-SSIM of two batches of volumes whose values span ``data_range``: 1 for equal volumes.

    A scale whose mean structure term is negative (anticorrelated volumes) counts as 0, and so does the volume.
    ValueError: a side below 3 voxels.
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
    """Luminance and contrast-structure maps, from means of s = a + b, d = a - b and their squares."""
    side = window_side(a.shape[1:], MS_WINDOW)
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
