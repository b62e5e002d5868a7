"""Cut a cube out of a scan: low-pass and linear samples in one step, because only the samples are wanted.

``resampling.blur_for`` filters every voxel of a scan, of which a cube of coarser voxels then uses few. A Gaussian and a
linear interpolation are both separable, so that together they are one small matrix an axis, and a slice of 512 x 512
becomes 128 x 128 by two matrix products.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from diffux2ct.data.ct_image import CtImage

_AIR = -1024.0  # HU outside the scan
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))  # full width at half maximum of a Gaussian of standard deviation 1
_REACH = 5.0  # standard deviations of the Gaussian that are summed


def cut_cube(
    ct: CtImage, size: int, spacing: float | int, centre: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "size size size"]:
    """A cube [D, H, W] of ``size`` voxels of ``spacing`` mm around ``centre`` (mm LPS, x, y, z), float32 HU.

    The same as ``sample_grid(blur_for(ct, spacing), ...)``: along axes that become coarser, a Gaussian turns a voxel's
    point spread into the coarser voxel's; then linear samples; -1024 HU outside the scan.
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
    if sigma <= 0.1 or count < 4:  # as blur_for, which filters neither
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
