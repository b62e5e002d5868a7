"""Line integrals of the trilinearly interpolated volume, by small steps along the ray."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Camera, Real, spacing_xyz
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import Grid, per_block, project_rays


def project_trilinear(
    attenuation: Volume,
    spacing: Real | Sequence[Real],
    camera: Camera,
    view: str,
    *,
    pose: Pose | None = None,
    step_mm: Real | None = None,
) -> Xray:
    """Line integrals by marching: samples of the interpolated volume, equally spaced along each ray.

    step_mm: largest distance between samples; None: half the smallest voxel edge. UserError where it is not positive.
    Other arguments as in ``project_rays``.
    """
    step = min(spacing_xyz(spacing)) / 2 if step_mm is None else float(step_mm)
    if not 0 < step < float("inf"):
        raise UserError(f"step={step_mm} mm; give a positive length, for instance half a voxel")
    return project_rays(attenuation, spacing, camera, view, pose, partial(_Marching, step_mm=step))


class _Marching:
    """The rule of ``project_trilinear``: [rays, 3] starts and ends in mm; samples at most ``step_mm`` apart."""

    def __init__(self, starts: np.ndarray, ends: np.ndarray, grid: Grid, step_mm: float) -> None:
        # Interpolation reaches one voxel beyond the outermost centres: half a voxel beyond the volume's faces.
        enter, leave = box_crossings(starts, ends, grid.half + np.asarray(grid.spacing) / 2)
        share = (leave - enter)[:, None]
        length = np.linalg.norm(share * (ends - starts), axis=1)
        self.num_rays = len(starts)
        self.hits = np.flatnonzero(length > 0)
        self.samples = max(1, int(np.ceil(length.max() / step_mm)))
        self.mm = (length / self.samples)[self.hits]
        # grid_sample's coordinates: -1 and 1 are the volume's faces.
        self.first = ((starts + enter[:, None] * (ends - starts)) / grid.half)[self.hits]
        self.along = (share * (ends - starts) / grid.half)[self.hits]

    def sums(self, volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b r"]:
        sums = volume.new_zeros(volume.shape[0], self.num_rays)
        for rays, points, mm in self._blocks(volume):
            sums[:, rays] = _sample(volume, points).sum(-1) * mm
        return sums

    def spread(self, grad: Float[Tensor, "b r"], volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        back = torch.zeros_like(volume)
        for rays, points, mm in self._blocks(volume):
            with torch.enable_grad():
                anything = torch.zeros_like(volume, requires_grad=True)  # sampling is linear
                samples = _sample(anything, points)
            share = (grad[:, rays] * mm)[..., None].expand_as(samples)
            back += torch.autograd.grad(samples, anything, share)[0]
        return back

    def _blocks(self, like: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rays [p], points [p, samples, 3], mm between samples [p]."""
        fraction = (torch.arange(self.samples, dtype=like.dtype, device=like.device) + 0.5) / self.samples
        size = per_block(self.samples, like.device)
        for start in range(0, self.hits.size, size):
            part = slice(start, start + size)
            arrays = (a[part] for a in (self.first, self.along, self.mm))
            first, along, mm = (torch.from_numpy(a).to(like.device, like.dtype) for a in arrays)
            points = first[:, None] + along[:, None] * fraction[:, None]
            yield torch.from_numpy(self.hits[part]).to(like.device), points, mm


def _sample(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear samples [b, p, k] of [b, d, h, w] at points [p, k, 3]; air outside. The batch goes as channels."""
    return F.grid_sample(volume[None], points[None, :, :, None], align_corners=False)[0, ..., 0]


def box_crossings(starts: np.ndarray, ends: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit of rays [n, 3] in the box [-half, half], as shares of start to end; equal where they miss."""
    direction = ends - starts
    # A ray along an axis crosses the other planes nowhere: a tiny slope puts that crossing far away.
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    one, other = (-half - starts) / direction, (half - starts) / direction
    enter = np.minimum(one, other).max(1).clip(0, 1)
    leave = np.maximum(one, other).min(1).clip(0, 1)
    return enter, np.maximum(enter, leave)
