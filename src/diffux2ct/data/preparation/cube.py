"""Cut a cube out of a scan: low-pass and linear samples in one step, because only the samples are wanted.

A filter over the whole scan computes voxels of which a cube of coarser voxels uses few. A Gaussian and a linear
interpolation are both separable, so that together they are one small matrix an axis, and a slice of 512 x 512 becomes
128 x 128 by two matrix products. The Gaussian turns a voxel's point spread (FWHM = one voxel) into that of the coarser
voxel: sigma = sqrt(new^2 - old^2) / 2.355 mm (Cardoso et al. 2015, as in TorchIO).
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from diffux2ct.data.io.ct_image import CtImage, LabelImage
from diffux2ct.data.labels import LABELS, LUMBAR
from diffux2ct.errors import UserError

_AIR = -1024.0  # HU outside the scan
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))  # full width at half maximum of a Gaussian of standard deviation 1
_REACH = 5.0  # standard deviations of the Gaussian that are summed


def cut_cube(
    ct: CtImage, size: int, spacing: float | int, centre: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "size size size"]:
    """A cube [D, H, W] of ``size`` voxels of ``spacing`` mm around ``centre`` (mm LPS, x, y, z), float32 HU.

    A Gaussian low-pass along the axes that become coarser, then linear samples; -1024 HU outside the scan.
    """
    start = np.asarray(centre, np.float64) - (size - 1) / 2 * spacing
    weights = []
    for axis in range(3):
        positions = (start[axis] + np.arange(size) * spacing - ct.origin[axis]) / ct.spacing[axis]
        weights.append(_weights(positions, ct.hu.shape[2 - axis], ct.spacing[axis], float(spacing)))
    used = [np.flatnonzero(w.any(0)) for w in weights]
    if min(map(len, used)) == 0:
        return np.full((size,) * 3, _AIR, np.float32)
    x, y, z = (slice(u[0], u[-1] + 1) for u in used)
    along_x, along_y, along_z = (
        torch.from_numpy(np.ascontiguousarray(w[:, part], dtype=np.float32))
        for w, part in zip(weights, (x, y, z), strict=True)
    )
    with _one_thread():
        planes = torch.empty((z.stop - z.start, size, size))
        for plane, out in zip(ct.hu[z, y, x], planes, strict=True):
            values = torch.from_numpy(np.subtract(plane, _AIR, dtype=np.float32))
            torch.matmul(along_y, values @ along_x.T, out=out)
        cube = along_z @ planes.flatten(1)
    return cube.unflatten(1, (size, size)).add_(_AIR).numpy()


def _weights(positions: np.ndarray, count: int, old: float, new: float) -> np.ndarray:
    """Weights [positions, voxels] of one axis; positions in voxels. Rows outside the scan are 0, others sum to 1."""
    inside = (positions >= -0.5) & (positions <= count - 0.5)
    clamped = positions.clip(0, count - 1)
    voxel = np.arange(count)
    linear = (1.0 - np.abs(clamped[:, None] - voxel)).clip(0) * inside[:, None]
    sigma = np.sqrt(max(new * new - old * old, 0.0)) / _FWHM / old  # voxels
    if sigma <= 0.1 or count < 4:  # a kernel far below one voxel, or a slab too thin to filter
        return linear
    distance = np.abs(voxel[:, None] - voxel)
    gaussian = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= np.ceil(_REACH * sigma))
    return linear @ (gaussian / gaussian.sum(1, keepdims=True))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: the same bytes however many threads there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# The centre of a cube, mm LPS (x, y, z).

_BODY_HU, _BODY_STEP = -500, 4.0  # body is above this; mm between the voxels that are looked at
_KEPT_BODY, _DRAWS = 0.5, 200  # of the central cube's body, that a random crop holds; draws for it
_JITTER = 0.1  # of the cube's side: how far off centre a random crop may lie where the scan is shorter than the cube


def cube_centre(grid: str, ct: CtImage, labels: LabelImage | None, side: float) -> Float[np.ndarray, "3"]:
    """Centre of the one cube of ``side`` mm that ``grid`` (centre, x2ct, lumbar) cuts out of a scan.

    Raises UserError where the labels that ``lumbar`` needs are missing (without the scan's path).
    """
    if grid == "x2ct":
        return x2ct_centre(ct, side)
    if grid == "lumbar":
        return lumbar_centre(labels)
    return np.array(ct.centre)


def x2ct_centre(ct: CtImage, side: float) -> Float[np.ndarray, "3"]:
    """X2CT-GAN's rule on a scan of 1 mm voxels: z keeps the topmost ``side`` mm, x and y the middle.

    Its code takes the LAST slices of an array whose z runs to Superior. A scan that is shorter than the cube is padded
    on both ends; where that, or the margin of x and y, is odd, the smaller half lies on the lower end.
    (X2CT-GAN, CT2XRAY/ctpro.py; the cube there is 320 voxels.)
    """
    length = round(side)
    centre = []
    for axis in range(3):
        voxels = round(ct.extent[axis])  # of 1 mm; resampling keeps the scan's middle
        spare = voxels - length
        start = spare if axis == 2 and spare >= 0 else int(spare / 2)
        centre.append(ct.centre[axis] - voxels / 2 + start + length / 2)
    return np.array(centre)


def lumbar_centre(labels: LabelImage | None) -> Float[np.ndarray, "3"]:
    """Middle of the box around the vertebrae L1 to L5 (or around a lumbar spine labelled as one).

    Raises UserError where labels, or those of one of the five, are missing.
    """
    if labels is None:
        raise UserError("no labels, which grid=lumbar needs; use grid=centre")
    present = np.bincount(labels.labels.ravel(), minlength=256) > 0
    missing = [name for name in LUMBAR if not present[LABELS[name]]]
    values = [LABELS[name] for name in LUMBAR]
    if missing and present[LABELS["lumbar_spine"]]:
        values = [LABELS["lumbar_spine"]]
    elif missing:
        raise UserError(f"the labels hold no {', '.join(missing)}, and grid=lumbar needs L1 to L5; use grid=centre")
    z, y, x = np.nonzero(np.isin(labels.labels, values))
    middle = np.array([(axis.min() + axis.max()) / 2 for axis in (x, y, z)])
    return np.array(labels.origin) + middle * np.array(labels.spacing)


def random_centres(ct: CtImage, side: float, num: int, key: str, seed: int) -> Float[np.ndarray, "n 3"]:
    """``num`` cube centres [num, 3] in mm (x, y, z), uniform where a cube of ``side`` mm stays inside the scan.

    Along an axis where the scan is shorter than the cube, the centre moves by up to a tenth of the side, as far as the
    scan stays inside the cube. A cube with less than half of the body that the scan's central cube holds is drawn
    again, up to 200 times; then the best of these is taken. The draws depend on the scan, ``key`` (the case's name) and
    ``seed`` alone, not on ``num``.
    """
    middle, slack = np.array(ct.centre), (np.array(ct.extent) - side) / 2
    reach = np.where(slack >= 0, slack, np.minimum(-slack, _JITTER * side))
    generator = np.random.default_rng(seed_of(key, seed))
    body = _BodyShare(ct, side)
    enough = _KEPT_BODY * body(middle)
    centres = np.zeros((num, 3))
    for index in range(num):
        most = -1.0
        for _ in range(_DRAWS):
            centre = middle + generator.uniform(-1.0, 1.0, size=3) * reach
            share = body(centre)
            if share > most:
                most, centres[index] = share, centre
            if share >= enough:
                break
    return centres


class _BodyShare:
    """The share of a cube of ``side`` mm that is body, by its centre, from sums over voxels of about 4 mm."""

    def __init__(self, ct: CtImage, side: float) -> None:
        steps = [max(1, round(_BODY_STEP / s)) for s in ct.spacing]
        solid = ct.hu[:: steps[2], :: steps[1], :: steps[0]] > _BODY_HU
        sums = np.pad(solid.astype(np.int32), ((1, 0),) * 3)
        for axis in range(3):
            np.cumsum(sums, axis=axis, out=sums)
        self._sums, self._side = sums, side
        self._spacing = np.array(ct.spacing) * steps
        self._origin = np.array(ct.origin)

    def __call__(self, centre: Float[np.ndarray, "3"]) -> float:
        edges = centre + np.array([[-0.5], [0.5]]) * self._side
        cells = np.round((edges - self._origin) / self._spacing + 0.5).astype(int)
        z, y, x = (cells[:, 2 - i].clip(0, count - 1) for i, count in enumerate(self._sums.shape))
        box = self._sums[np.ix_(z, y, x)]
        count = np.diff(np.diff(np.diff(box, axis=0), axis=1), axis=2).item()
        return count * float(np.prod(self._spacing)) / self._side**3


def filled_share(ct: CtImage, side: float, centre: Float[np.ndarray, "3"]) -> float:
    """The share of a cube of ``side`` mm around ``centre`` (mm LPS) that the scan fills; the rest is padding."""
    reach = np.minimum(np.array(ct.extent) / 2, side / 2)
    apart = np.abs(centre - np.array(ct.centre))
    overlap = np.minimum(2 * reach, (np.array(ct.extent) + side) / 2 - apart).clip(0)
    return float(np.prod(overlap / side))


def seed_of(key: str, seed: int) -> list[int]:
    """A generator's seed for one named thing, independent of all others."""
    return [seed, zlib.crc32(key.encode())]
