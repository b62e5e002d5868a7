"""Digitally reconstructed radiographs: HU to the detector's image, by any camera, pose, projector and model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS, Volume, Xray
from diffux2ct.xray.attenuation import AttenuationModel, attenuation_model
from diffux2ct.xray.camera import Array, Camera, Real
from diffux2ct.xray.joseph import project_joseph
from diffux2ct.xray.pose import Pose, in_named_view
from diffux2ct.xray.siddon import project_siddon
from diffux2ct.xray.trilinear import project_trilinear

PROJECTORS: Mapping[str, Callable[..., Tensor]] = {
    "joseph": project_joseph,
    "siddon": project_siddon,
    "trilinear": project_trilinear,
}
OUTPUTS = ("line_integral", "transmission", "max")


def render_view(
    hu: Volume,
    spacing: Real | Sequence[Real],
    camera: Camera,
    view: str,
    *,
    projector: str = "joseph",
    attenuation: str | AttenuationModel = "plastimatch",
    pose: Pose | None = None,
) -> Xray:
    """One view of a CT on the camera's own panel.

    Args:
        hu: [B, 1, D, H, W] LPS, HU as the X-rays see them; its centre is the isocentre. Outside is air.
        spacing, camera, pose: as in ``project_rays``. view: "frontal", "lateral" or at another angle (`xray.pose`).
        projector: "joseph" (one sample a slab; fast), "siddon" (exact for uniform voxels) or "trilinear" (half a
            voxel's steps through the interpolated volume).
        attenuation: "plastimatch", "water" or "two_material", or a model with settings of your own.

    Returns:
        [B, 1, rows, cols] (effective) line integrals, dimensionless. Differentiable in ``hu``.

    UserError for an unknown name, and for a volume that reaches the source or the panel.
    """
    model = attenuation_model(attenuation)
    if projector not in PROJECTORS:
        raise UserError(f"projector {projector!r} is unknown; use {', '.join(PROJECTORS)}")
    maps = model.materials(hu)
    view, pose = in_named_view(view, pose)
    paths = PROJECTORS[projector](maps.flatten(0, 1)[:, None], spacing, camera, view, pose=pose)
    return model.line_integral(paths[:, 0].unflatten(0, maps.shape[:2]))


def render_pair(
    hu: Array,
    spacing: Real | Sequence[Real],
    camera: Camera,
    size: int,
    *,
    projector: str = "joseph",
    attenuation: str | AttenuationModel = "plastimatch",
    jitter: Pose | Mapping[str, Pose] | None = None,
    views: Sequence[str] = VIEWS,
) -> dict[str, Array]:
    """Frontal and lateral digitally reconstructed radiographs of one CT, or those of other ``views``.

    Args:
        hu: [D, H, W] LPS, HU of any numeric type, as the X-rays see them (clip metal before).
        spacing, camera, projector, attenuation: as for ``render_view``.
        size: pixels per side of the result; a panel with another pixel count is resampled with anti-aliasing.
        jitter: the patient's pose, for all views or for each (``random_poses``); None: straight.
        views: names of views at any angles (`xray.pose`).

    Returns:
        A mapping by view: float32 line integrals [size, size], dimensionless; tensors (differentiable) for a tensor,
        arrays for an array.

    UserError as for ``render_view``.
    """
    as_tensor = isinstance(hu, Tensor)
    volume = hu.float() if as_tensor else torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))
    images: dict[str, Any] = {}
    for view in views:
        pose = jitter.get(view) if isinstance(jitter, Mapping) else jitter
        image = render_view(
            volume[None, None], spacing, camera, view, projector=projector, attenuation=attenuation, pose=pose
        )
        if image.shape[-2:] != (size, size):
            image = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
        images[view] = image[0, 0] if as_tensor else image[0, 0].numpy()
    return images


def encode_output(line_integrals: Array, output: str) -> tuple[Array, float]:
    """Line integrals in another form, and the scale with which ``decode_output`` undoes it.

    output: "line_integral"; "transmission", exp(-p), the share of the beam that arrives; or "max", divided by the
    image's largest as X2CT-GAN does, whose scale is that largest value (1 for an empty image). The scale of the other
    two is 1. UserError for another output.
    """
    if output == "line_integral":
        return line_integrals, 1.0
    if output == "transmission":
        exp: Any = torch.exp if isinstance(line_integrals, Tensor) else np.exp
        return exp(-line_integrals), 1.0
    if output == "max":
        largest = float(line_integrals.max())
        scale = largest if largest > 0 else 1.0
        return line_integrals / scale, scale
    raise UserError(f"output {output!r} is unknown; use {', '.join(OUTPUTS)}")


def decode_output(image: Array, output: str, scale: Real = 1.0) -> Array:
    """The inverse of ``encode_output``. A transmission of 0 counts as the smallest float.

    UserError for another output, or a scale that is not positive.
    """
    if not scale > 0:
        raise UserError(f"scale={scale}: must be positive")
    if output == "transmission":
        tiny = float(np.finfo(np.float32).tiny)
        log: Any = torch.log if isinstance(image, Tensor) else np.log
        return -log(image.clip(tiny))
    if output in ("line_integral", "max"):
        return image * float(scale)
    raise UserError(f"output {output!r} is unknown; use {', '.join(OUTPUTS)}")
