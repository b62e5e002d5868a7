"""Rays of any camera through a volume in any pose, and differentiable weighted sums of voxels along them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.errors import UserError
from diffux2ct.xray.camera import Camera, Real, checked_view, spacing_xyz
from diffux2ct.xray.pose import Pose

# Samples of rays, or weights of slabs, that are in memory at a time.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume, for rays: shape in voxels and spacing in mm, both (x, y, z)."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def strides(self) -> tuple[int, int, int]:
        """Steps (x, y, z) in the flattened volume with its margin."""
        nx, ny, _ = self.shape
        return 1, nx + 2, (nx + 2) * (ny + 2)

    @property
    def half(self) -> np.ndarray:
        """Half its edges, mm (x, y, z)."""
        return np.asarray(self.shape) * np.asarray(self.spacing) / 2


def camera_rays(
    camera: Camera, view: str, *, pose: Pose | None = None, reach_mm: Real = 1000.0
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each pixel's ray, in the volume's coordinates.

    Args:
        camera: cone (rays start in one source), slit (the source moves with the row) or parallel.
        view: "frontal" (toward +y) or "lateral" (toward +x).
        pose: the patient's position; None: straight.
        reach_mm: parallel rays start and end this far from the isocentre's plane. Others end on the panel.

    Returns:
        starts and ends, each [rows, cols, 3], float64, (x, y, z) mm LPS about the volume's centre.
    """
    rows = (np.arange(camera.rows) - (camera.rows - 1) / 2) * camera.pitch[0]
    cols = (np.arange(camera.cols) - (camera.cols - 1) / 2) * camera.pitch[1]
    z, across = np.meshgrid(rows, cols, indexing="ij")
    zero = np.zeros_like(z)
    start_z = zero if camera.kind == "cone" else z
    start_across = across if camera.kind == "parallel" else zero
    before, behind = (reach_mm, reach_mm) if camera.kind == "parallel" else (camera.sad, camera.sid - camera.sad)
    frontal = checked_view(view) == "frontal"

    def in_axes(across: np.ndarray, depth: Real, z: np.ndarray) -> np.ndarray:
        along = zero + camera.toward * depth
        return np.stack((across, along, z) if frontal else (along, across, z), -1)

    starts, ends = in_axes(start_across, -before, start_z), in_axes(across, behind, z)
    return (starts, ends) if pose is None else (pose.to_volume(starts), pose.to_volume(ends))


def check_clearance(grid: Grid, camera: Camera, view: str, pose: Pose | None = None) -> None:
    """UserError for a volume that reaches the source's or the panel's plane."""
    if camera.kind == "parallel":
        return
    corners = np.stack(np.meshgrid(*[(-h, h) for h in grid.half], indexing="ij"), -1).reshape(-1, 3)
    depth = camera.toward * (pose or Pose()).to_room(corners)[:, 1 if checked_view(view) == "frontal" else 0]
    if depth.min() <= -camera.sad or depth.max() > camera.sid - camera.sad:
        raise UserError(
            f"the volume reaches from {depth.min():g} to {depth.max():g} mm about the isocentre, and the camera's "
            f"source stands at {-camera.sad:g} mm and its panel at {camera.sid - camera.sad:g} mm; "
            "crop it or move the camera"
        )


@runtime_checkable
class Rule(Protocol):
    """A rule of integration for given rays: linear in the volume, with its exact adjoint.

    Both methods compute their weights anew, block by block of rays: those of a panel of 320^2 rays take gigabytes.
    """

    def sums(self, volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b r"]:
        """The rays' line integrals."""
        ...

    def spread(self, grad: Float[Tensor, "b r"], volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The adjoint of ``sums``: gradients of the rays spread over the voxels. volume: for its shape."""
        ...


def project_rays(
    attenuation: Float[Tensor, "b 1 d h w"],
    spacing: Real | Sequence[Real],
    camera: Camera,
    view: str,
    pose: Pose | None,
    rule: Callable[[np.ndarray, np.ndarray, Grid], Rule],
) -> Float[Tensor, "b 1 v u"]:
    """Line integrals of a volume along the rays of a camera.

    Args:
        attenuation: [B, 1, D, H, W] LPS, linear attenuation in mm^-1; its centre is the isocentre. Outside is air.
        spacing: (x, y, z) mm, or one number.
        camera: the camera; its panel gives the image's pixels.
        view: "frontal" or "lateral".
        pose: the patient's position; None: straight.
        rule: (starts [rays, 3], ends [rays, 3] in mm, grid) to the rule of integration.

    Returns:
        [B, 1, rows, cols], dimensionless. Differentiable in the volume; float32 inside (float64 for float64 input)
        even under autocast.

    Raises:
        UserError: the volume reaches the source or the panel.
    """
    _, _, depth, height, width = attenuation.shape
    grid = Grid((width, height, depth), spacing_xyz(spacing))
    check_clearance(grid, camera, view, pose)
    reach = float(np.linalg.norm(grid.half)) + float(np.linalg.norm(pose.shift_mm) if pose else 0.0)
    starts, ends = camera_rays(camera, view, pose=pose, reach_mm=reach)
    with torch.autocast(attenuation.device.type, enabled=False):
        volume = attenuation[:, 0]
        volume = volume if volume.dtype == torch.float64 else volume.float()
        sums: Any = _RaySums.apply(volume, rule(starts.reshape(-1, 3), ends.reshape(-1, 3), grid))
    return sums.reshape(-1, 1, camera.rows, camera.cols)


def per_block(elements: int, device: torch.device) -> int:
    """Number of rays or slabs of so many elements each in a block."""
    return max(1, BLOCK_ELEMENTS.get(device.type, 2**20) // elements)


def slab_walks(
    starts: np.ndarray, ends: np.ndarray, grid: Grid, like: Tensor, voxels_per_slab: int
) -> Iterator[tuple[Tensor, int, Tensor, Tensor, Tensor]]:
    """Rays in blocks of those that cross most voxels along the same axis.

    Yields:
        rays [p]: which; axis: 0, 1 or 2 for x, y, z; at [p, 2]: where they enter the volume's first slab along
        that axis, in voxels along the other two axes (voxel k spans k to k + 1); slope [p, 2]: how far they move
        from slab to slab, in [-1, 1]; length [p]: mm of ray in a slab.
    """
    spacing, shape = np.asarray(grid.spacing), np.asarray(grid.shape)
    voxel = starts / spacing + shape / 2
    step = (ends - starts) / spacing
    steepest = np.abs(step).argmax(1)
    for axis in range(3):
        which = np.flatnonzero(steepest == axis)
        others = [other for other in range(3) if other != axis]
        # Geometry in float64: a source 1000 mm away costs float32 a thousandth of a voxel.
        slope = step[which][:, others] / step[which][:, axis, None]
        at = voxel[which][:, others] - voxel[which][:, axis, None] * slope
        length = np.linalg.norm(ends - starts, axis=1)[which] / np.abs(step[which][:, axis])
        size = per_block(voxels_per_slab * int(shape[axis]), like.device)
        for start in range(0, which.size, size):
            part = slice(start, start + size)
            rays = torch.from_numpy(which[part]).to(like.device)
            there, by, mm = (torch.from_numpy(a[part]).to(like.device, like.dtype) for a in (at, slope, length))
            yield rays, axis, there, by, mm


class _RaySums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, rule: Rule) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(volume)
        return rule.sums(volume)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (volume,) = ctx.saved_tensors
        return ctx.rule.spread(grad_outputs[0].contiguous(), volume), None


@dataclass(frozen=True)
class VoxelSums:
    """The rule that ray r sums weight[r, k] * voxel index[r, k] over k.

    blocks: (starts, ends, grid, a tensor whose type and device to use) -> parts of (rays [p], index [p, k], weight
    [p, k] in mm). index counts the voxels of the volume with a margin of one voxel of air on every side, in array
    order. starts, ends: of the rays [rays, 3], mm.
    """

    blocks: Callable[[np.ndarray, np.ndarray, Grid, Tensor], Iterator[tuple[Tensor, Tensor, Tensor]]]
    starts: np.ndarray
    ends: np.ndarray
    grid: Grid

    def sums(self, volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b r"]:
        table = F.pad(volume, (1, 1, 1, 1, 1, 1)).flatten(1).T.contiguous()
        sums = table.new_zeros(len(self.starts), table.shape[1])
        for rays, index, weight in self.blocks(self.starts, self.ends, self.grid, volume):
            sums[rays] = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
        return sums.T

    def spread(self, grad: Float[Tensor, "b r"], volume: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        batch, depth, height, width = volume.shape
        back = grad.new_zeros((depth + 2) * (height + 2) * (width + 2), batch)
        for rays, index, weight in self.blocks(self.starts, self.ends, self.grid, volume):
            share = weight[..., None] * grad.T[rays][:, None]  # [ray, k, b]
            back.index_add_(0, index.flatten(), share.flatten(0, 1))
        return back.T.unflatten(1, (depth + 2, height + 2, width + 2))[:, 1:-1, 1:-1, 1:-1]
