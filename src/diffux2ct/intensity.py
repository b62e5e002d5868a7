"""Changes of scale: HU to and from [-1, 1], HU to linear attenuation, line integrals to [-1, 1], blocks to means."""

from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int16, Shaped

from diffux2ct.errors import UserError

HU_WINDOW = (-1024.0, 1500.0)

WATER_ATTENUATION = 0.022  # mm^-1, the value built into plastimatch's DRR program
AIR_BELOW_HU = -800.0  # at and below this, plastimatch sees air
XRAY_SCALE = 8.0  # line integral that "fixed" maps to 1: about 36 cm of water; a torso from the side stays below

Array = TypeVar("Array", torch.Tensor, np.ndarray)
Window = tuple[float | int, float | int]


def normalize_hu(hu: Array, window: Window = HU_WINDOW) -> Array:
    """Map HU to [-1, 1], clipping what lies outside the window.

    Args:
        hu: tensor or array of any shape, HU. Integers become float32, floats keep their type.
        window: the HU that become -1 and 1.

    Raises:
        UserError: the window is empty.
    """
    low, high = _checked(window)
    return (_floating(hu).clip(low, high) - low) * (2.0 / (high - low)) - 1.0


def denormalize_hu(x: Array, window: Window = HU_WINDOW) -> Array:
    """Map [-1, 1] back to HU: the inverse of ``normalize_hu`` inside the window. Does not clip."""
    low, high = _checked(window)
    return (_floating(x) + 1.0) * ((high - low) / 2.0) + low


def to_hu(volume: Float[torch.Tensor, "1 d h w"], window: Window) -> Int16[np.ndarray, "d h w"]:
    """[-1, 1], clipped, to whole HU."""
    return np.round(denormalize_hu(volume[0].clamp(-1, 1).cpu().numpy(), window)).astype(np.int16)


def attenuation_from_hu(hu: Array) -> Array:
    """Linear attenuation in mm^-1: 0.022 (1 + HU / 1000), and 0 at HU <= -800.

    The convention of plastimatch's ``drr``, whose images X2CT-GAN and DiffuX2CT train on (docs/method.md).
    Any shape; differentiable for tensors.
    """
    hu = _floating(hu)
    return (WATER_ATTENUATION / 1000.0 * hu + WATER_ATTENUATION) * (hu > AIR_BELOW_HU)


def normalize_xray(line_integrals: torch.Tensor, mode: str = "max", scale: float = XRAY_SCALE) -> torch.Tensor:
    """Line integrals [..., V, U] to [-1, 1], float32.

    mode: "max" divides each image by its own maximum (absolute scale is lost, as in X2CT-GAN); "fixed" divides by
    ``scale`` and clips. An empty image becomes -1 everywhere.
    """
    images = line_integrals.float()
    if mode == "max":
        peak = images.amax(dim=(-2, -1), keepdim=True)
        unit = images / torch.where(peak > 0, peak, torch.ones_like(peak))
    elif mode == "fixed":
        unit = images / scale
    else:
        raise UserError(f"xray_normalization={mode}: choose max or fixed")
    return 2.0 * unit.clamp(0.0, 1.0) - 1.0


def _floating(values: Array) -> Array:
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else values.float()
    values = np.asarray(values)
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float32)


def _checked(window: Window) -> Window:
    low, high = window
    if not low < high:
        raise UserError(f"window=[{low}, {high}]: give two HU, the lower one first")
    return low, high


def block_mean(
    array: Shaped[np.ndarray, "*n"], factor: int, dtype: type[np.floating] | None = None
) -> Float[np.ndarray, "*m"]:
    """Means over blocks of ``factor`` along every axis, summed in ``dtype`` (None: the array's own)."""
    blocks = array.reshape([n for side in array.shape for n in (side // factor, factor)])
    return blocks.mean(tuple(range(1, blocks.ndim, 2)), dtype=dtype)
