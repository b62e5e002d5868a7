"""Hounsfield units to and from what the models see ([-1, 1]) and what X-rays see (linear attenuation)."""

from typing import TypeVar

import numpy as np
import torch

HU_WINDOW = (-1024.0, 1500.0)

WATER_ATTENUATION = 0.022  # mm^-1, the value built into plastimatch's DRR program
AIR_BELOW_HU = -800.0  # at and below this, plastimatch sees air

Array = TypeVar("Array", torch.Tensor, np.ndarray)
Window = tuple[float | int, float | int]


def normalize_hu(hu: Array, window: Window = HU_WINDOW) -> Array:
    """Map HU to [-1, 1], clipping what lies outside the window.

    Args:
        hu: tensor or array of any shape, HU. Integers become float32, floats keep their type.
        window: the HU that become -1 and 1.

    Raises:
        ValueError: the window is empty.
    """
    low, high = _checked(window)
    return (_floating(hu).clip(low, high) - low) * (2.0 / (high - low)) - 1.0


def denormalize_hu(x: Array, window: Window = HU_WINDOW) -> Array:
    """Map [-1, 1] back to HU: the inverse of ``normalize_hu`` inside the window. Does not clip."""
    low, high = _checked(window)
    return (_floating(x) + 1.0) * ((high - low) / 2.0) + low


def attenuation_from_hu(hu: Array) -> Array:
    """Linear attenuation in mm^-1: 0.022 (1 + HU / 1000), and 0 at HU <= -800.

    The convention of plastimatch's ``drr``, whose images X2CT-GAN and DiffuX2CT train on (docs/method.md).
    Any shape; differentiable for tensors.
    """
    hu = _floating(hu)
    return (WATER_ATTENUATION / 1000.0 * hu + WATER_ATTENUATION) * (hu > AIR_BELOW_HU)


def _floating(values: Array) -> Array:
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else values.float()
    values = np.asarray(values)
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float32)


def _checked(window: Window) -> Window:
    low, high = window
    if not low < high:
        raise ValueError(f"HU window must rise, got [{low}, {high}]")
    return low, high
