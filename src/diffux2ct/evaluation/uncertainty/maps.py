"""Uncertainty of a reconstruction whose truth is unknown, as volumes to write."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from diffux2ct.errors import UserError
from diffux2ct.evaluation.uncertainty.calibration import Calibration
from diffux2ct.evaluation.uncertainty.spread import VOXELS, Draws, Spread
from diffux2ct.evaluation.uncertainty.support import ray_support
from diffux2ct.intensity import Window
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.pose import is_view


def uncertainty_maps(
    reconstructor: Any,
    xrays: Mapping[str, Tensor],
    draws: Draws,
    window: Window,
    camera: Camera | None,
    spacing: tuple[float, float, float],
    calibration: Calibration | None,
) -> dict[str, Shaped[np.ndarray, "d h w"]]:
    """Volumes by name, for X-rays [1, ...] of one patient.

    std_hu. interval_low and interval_high, whole HU and rounded outwards, of a calibrated model. ray_support: 1 where
    rays reach, where the camera is known. spacing: (x, y, z) mm.
    """
    views = tuple(filter(is_view, xrays))
    volume = Spread.of_volumes(draws.of(reconstructor, xrays, ""), window)
    maps: dict[str, np.ndarray] = {"std_hu": volume.std}
    if calibration is not None:
        low, high = volume.interval(calibration.scales[VOXELS], calibration.rule.floor, window)
        maps |= {"interval_low": np.floor(low).astype(np.int16), "interval_high": np.ceil(high).astype(np.int16)}
    if camera is not None:
        with suppress(UserError):  # a volume that reaches the source: not this camera's
            maps["ray_support"] = ray_support(camera, volume.std.shape, spacing, views=views).astype(np.uint8)
    return maps
