"""Metal into the voxels: HU by partial volume, labels by majority, and the artefact if wanted."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, UInt8

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
    shares = [(value, found) for value, solid in solids if (found := coverage(solid, labels)) is not None]
    if not shares:
        return hu.copy(), labels.values.copy()
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
    new_hu, new_labels = hu.copy(), labels.values.copy()
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
    touched = metal > 0
    if settings.artefact:
        from diffux2ct.data.instrumentation.artefact import metal_artefact

        error = metal_artefact(hu.astype(np.float32), metal, spacing, rng)
        touched |= error != 0
    else:
        error = np.zeros(1, np.float32)
    error = np.broadcast_to(error, hu.shape)[touched]
    mixed = (1 - metal[touched]) * (hu[touched] + error) + metal[touched] * float(settings.metal_hu)
    mixed = mixed.clip(_LOWEST_HU, max(float(settings.clip_hu), float(hu.max())))
    new[touched] = np.rint(mixed).astype(hu.dtype) if np.issubdtype(hu.dtype, np.integer) else mixed
    return new
