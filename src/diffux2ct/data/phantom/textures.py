"""Smooth random fields of a patient, and the noise of the scan."""

import numpy as np

from diffux2ct.data.phantom.canvas import Canvas, Real, interpolate


def lattice_noise(
    rng: np.random.Generator, canvas: Canvas, pitch_mm: tuple[float, float, float], count: int = 40
) -> np.ndarray:
    """Smooth noise over the canvas, unit normal at the nodes of a lattice of fixed pitch (x, y, z) in mm.

    Any size and any region sees the same field, which repeats every `count` nodes.
    """
    field = rng.standard_normal((count, count, count), dtype=np.float32)
    weights = []
    whole = canvas.whole()
    for coords, pitch in zip((whole.z, whole.y, whole.x), reversed(pitch_mm), strict=True):
        at = coords.ravel() / np.float32(pitch)
        low = np.floor(at)
        share = at - low
        weights.append((low.astype(np.intp), share * share * (3 - 2 * share)))
    # Cut out the nodes in view, then interpolate.
    for axis, (low, _) in enumerate(weights):
        first, last = int(low.min()), int(low.max()) + 1
        field = field.take(np.arange(first, last + 1) % count, axis)
    return interpolate(field, [(low - low.min(), share) for low, share in weights])


def add_scan_noise(canvas: Canvas, rng: np.random.Generator, sigma: Real, thickness: np.ndarray) -> None:
    """Noise as of a reconstructed CT: correlated over neighbours, stronger where the body is thick.

    sigma: standard deviation in 2 mm voxels where `thickness` is 1. thickness: [D], relative. In the plane the
    correlation turns negative at three voxels, as after a ramp filter; along z neighbours share half.
    """
    scale = min(1.0, 2.0 / canvas.voxel) ** 2
    noise = rng.standard_normal(canvas.hu.shape, dtype=np.float32)
    near, far = np.float32(0.36 * scale), np.float32(-0.10 * scale)
    power = 1.0
    for axis, taps in ((0, (near,)), (1, (near, far)), (2, (near, far))):
        total = noise.copy()
        values, sums = np.moveaxis(noise, axis, 0), np.moveaxis(total, axis, 0)
        for lag, weight in enumerate(taps, start=1):
            sums[lag:] += weight * values[:-lag]
            sums[:-lag] += weight * values[lag:]
        power *= 1 + 2 * sum(float(w) ** 2 for w in taps)
        noise = total
    # Larger voxels average more of it; less than white noise, because it is correlated.
    level = min(sigma * (2.0 / canvas.voxel) ** 0.58, 3 * sigma) / np.sqrt(power)
    noise *= (level * thickness).astype(np.float32)[:, None, None]
    canvas.hu += noise
