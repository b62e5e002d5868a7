"""Metal in the voxels: HU by partial volume, labels by majority, and, as an option, its artefact."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, UInt8
from skimage.transform import iradon, radon, resize

from diffux2ct.data.instrumentation.frame import Field
from diffux2ct.data.instrumentation.settings import InstrumentSettings
from diffux2ct.data.instrumentation.shapes import Solid, coverage

_LOWEST_HU = -1024.0


def implant(
    hu: Num[np.ndarray, "D H W"],
    labels: Field,
    solids: Sequence[tuple[int, Solid]],
    settings: InstrumentSettings,
    rng: np.random.Generator,
) -> tuple[Num[np.ndarray, "D H W"], UInt8[np.ndarray, "D H W"]]:
    """The scan and its labels with the solids in them; new arrays of the same types.

    labels: uint8 on the scan's voxels, LPS mm. solids: with the label of each. A voxel takes the label of the solid
    that fills most of it, once half of it is metal.
    """
    new_hu, new_labels = hu.copy(), labels.values.copy()
    shares = [(value, share) for value, solid in solids if (share := coverage(solid, labels)) is not None]
    if not shares:
        return new_hu, new_labels
    # Only the slices with metal are worked on: a scan may be ten times as long.
    first = min(box[0].start for _, (box, _) in shares)
    last = max(box[0].stop for _, (box, _) in shares)
    metal = np.zeros((last - first, *hu.shape[1:]), np.float32)
    most, owner = np.zeros_like(metal), np.zeros(metal.shape, np.uint8)
    for value, (box, share) in shares:
        box = (slice(box[0].start - first, box[0].stop - first), *box[1:])
        metal[box] += share.astype(np.float32)
        owner[box][share > most[box]] = value
        most[box] = np.maximum(most[box], share)
    metal = metal.clip(0, 1)
    new_hu[first:last] = _mixed(hu[first:last], metal, settings, labels.step, rng)
    half = metal >= 0.5
    new_labels[first:last][half] = owner[half]
    return new_hu, new_labels


def _mixed(
    hu: np.ndarray,
    metal: Float[np.ndarray, "D H W"],
    settings: InstrumentSettings,
    spacing: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Partial volume on the scanner's unclipped scale, then its clipping: edges saturate as in real scans."""
    new = hu.copy()
    error = np.zeros(hu.shape, np.float32)  # of the artefact
    for k in np.flatnonzero(metal.max((1, 2)) > 0.05) if settings.artefact else ():
        error[k] = _slice_error(hu[k].astype(np.float32), metal[k], spacing, rng)
    touched = (metal > 0) | (error != 0)
    mixed = (1 - metal[touched]) * (hu[touched] + error[touched]) + metal[touched] * float(settings.metal_hu)
    mixed = mixed.clip(_LOWEST_HU, max(float(settings.clip_hu), float(hu.max())))
    new[touched] = np.rint(mixed).astype(hu.dtype) if np.issubdtype(hu.dtype, np.integer) else mixed
    return new


# Artefacts of metal in its slices: dark bands by beam hardening, streaks by photon starvation.

_TITANIUM = np.array([0.339, 0.180, 0.121])  # mm^-1 at 60, 80 and 100 keV
_BEAM = np.array([0.35, 0.40, 0.25])  # shares of a 120 kVp beam behind a patient
_WATER = 0.0195  # mm^-1, on the scanner's scale
_PHOTONS = 1e5  # a ray without a patient
_SCATTER = 2e-4  # of the unattenuated beam, reaching every pixel: the signal behind much metal drowns in it
_PIXEL = 1.5  # mm, at least: streaks are broad
_ANGLES = 180


def _slice_error(hu: np.ndarray, metal: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """HU to add to an axial slice. hu: without the metal. metal: share of each voxel. spacing: (x, y, z) mm."""
    extent = np.array([hu.shape[0] * spacing[1], hu.shape[1] * spacing[0]])
    pixel = max(_PIXEL, float(min(spacing[:2])))
    size = np.maximum(1, np.round(extent / pixel)).astype(int)
    side = int(size.max())
    before = (side - size) // 2

    def square(image: np.ndarray) -> np.ndarray:
        small = np.asarray(resize(image.astype(np.float64), tuple(size), order=1, anti_aliasing=True, mode="edge"))
        pad = [(int(b), int(side - s - b)) for b, s in zip(before, size, strict=True)]
        return np.pad(small, pad)

    angles = np.arange(_ANGLES) * (180.0 / _ANGLES)
    tissue = radon(square(_WATER * np.clip(1 + hu / 1000, 0, 3)), angles, circle=False) * pixel
    length = radon(square(metal), angles, circle=False).clip(0) * pixel
    through = sum(w * np.exp(-mu * length) for w, mu in zip(_BEAM, _TITANIUM, strict=True))
    seen = np.exp(-tissue) * through + _SCATTER
    photons = rng.normal(_PHOTONS * seen, np.sqrt(_PHOTONS * seen)).clip(1.0)
    # The scanner corrects the scatter of a patient without metal.
    expected = np.exp(-tissue) + _SCATTER
    measured = -np.log(photons / _PHOTONS) + np.log(expected)
    # Metal is shown at the attenuation of 10 mm of it; the error is the deviation from that.
    linear = length * float(-np.log((_BEAM * np.exp(-10.0 * _TITANIUM)).sum()) / 10.0)
    # Rays that miss the metal carry only the noise that is in the scan already.
    wrong = np.where(length > 0.05 * pixel, measured - linear, 0.0)
    image = iradon(wrong, angles, filter_name="hann", circle=False, output_size=side) / pixel
    image = image[before[0] : before[0] + size[0], before[1] : before[1] + size[1]]
    return np.asarray(resize(image * (1000 / _WATER), hu.shape, order=1, mode="edge"))
