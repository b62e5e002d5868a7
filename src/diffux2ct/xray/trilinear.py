"""Line integrals of the trilinearly interpolated volume: by small steps along the ray, or one sample per slab."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Camera, Real, spacing_xyz
from diffux2ct.xray.joseph import project
from diffux2ct.xray.pose import Pose
from diffux2ct.xray.rays import Grid, VoxelSums, project_rays, rays_per_block
from diffux2ct.xray.siddon import slab_walks


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

    Args:
        attenuation: [B, 1, D, H, W] LPS, linear attenuation in mm^-1; its centre is the isocentre. Outside is air.
        spacing: (x, y, z) mm, or one number.
        camera: the camera; its panel gives the image's pixels.
        view: "frontal" or "lateral".
        pose: how the patient lies; None: straight.
        step_mm: largest distance between samples; None: half the smallest voxel edge.

    Returns:
        [B, 1, rows, cols], dimensionless. Differentiable in ``attenuation``.

    Raises:
        UserError: the volume reaches the source or the panel, or the step is not positive.
    """
    step = min(spacing_xyz(spacing)) / 2 if step_mm is None else float(step_mm)
    if not 0 < step < float("inf"):
        raise UserError(f"step={step_mm} mm; give a positive length, for instance half a voxel")

    return project_rays(
        attenuation, spacing, camera, view, pose, lambda starts, ends, grid: _Marching(starts, ends, grid, step)
    )


def project_joseph(
    attenuation: Volume, spacing: Real | Sequence[Real], camera: Camera, view: str, *, pose: Pose | None = None
) -> Xray:
    """Line integrals by Joseph's rule (IEEE TMI 1 (1982) 192): one interpolated sample per slab of voxels.

    Arguments, result and errors as ``project_trilinear``. Without a pose this is the separable ``project``; with
    one, rays no longer share their rows and columns, and each ray's slabs are sampled one by one.
    """
    if pose is None or pose.is_identity:
        return project(attenuation, spacing, camera, view)

    def rule(starts: np.ndarray, ends: np.ndarray, grid: Grid) -> VoxelSums:
        return VoxelSums(len(starts), lambda like: _joseph_blocks(starts, ends, grid, like))

    return project_rays(attenuation, spacing, camera, view, pose, rule)


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
        """The rays' line integrals."""
        sums = volume.new_zeros(volume.shape[0], self.num_rays)
        for rays, points, mm in self._blocks(volume):
            sums[:, rays] = _sample(volume, points).sum(-1) * mm
        return sums

    def spread(self, grad: Float[Tensor, "b r"], volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The adjoint of ``sums``."""
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
        size = rays_per_block(self.samples, like.device)
        for start in range(0, self.hits.size, size):
            part = slice(start, start + size)
            first, along, mm = (
                torch.from_numpy(a[part]).to(like.device, like.dtype) for a in (self.first, self.along, self.mm)
            )
            points = first[:, None] + along[:, None] * fraction[:, None]
            yield torch.from_numpy(self.hits[part]).to(like.device), points, mm


def _sample(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear samples [b, p, k] of [b, d, h, w] at points [p, k, 3]; air outside. The batch goes as channels."""
    return F.grid_sample(volume[None], points[None, :, :, None], align_corners=False)[0, ..., 0]


def _joseph_blocks(
    starts: np.ndarray, ends: np.ndarray, grid: Grid, like: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for rays, axis, at, slope, length in slab_walks(starts, ends, grid, like, voxels_per_slab=4):
        strides = grid.strides
        slab = torch.arange(grid.shape[axis], dtype=like.dtype, device=like.device)
        index = ((slab.long() + 1) * strides[axis]).expand(len(rays), -1)
        corners = [(index, length[:, None].expand_as(index))]
        for column, other in enumerate(other for other in range(3) if other != axis):
            # From edges (voxel k spans k to k + 1) to centres that count the margin; beyond it all is air as it is.
            last = grid.shape[other] + 1
            point = at[:, column, None] + slope[:, column, None] * (slab + 0.5) + 0.5
            point = point.clamp_(0, last)
            low = point.floor().clamp_(max=last - 1)
            upper, low = point - low, low.long() * strides[other]
            corners = [
                (index + low + up * strides[other], weight * (upper if up else 1 - upper))
                for index, weight in corners
                for up in (0, 1)
            ]
        yield rays, torch.cat([i for i, _ in corners], 1), torch.cat([w for _, w in corners], 1)


def box_crossings(starts: np.ndarray, ends: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays [n, 3] enter and leave the box [-half, half], as shares of start to end; equal where they miss."""
    direction = ends - starts
    # A ray along an axis crosses the other planes nowhere: a tiny slope puts that crossing far away.
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    one, other = (-half - starts) / direction, (half - starts) / direction
    enter = np.minimum(one, other).max(1).clip(0, 1)
    leave = np.maximum(one, other).min(1).clip(0, 1)
    return enter, np.maximum(enter, leave)
