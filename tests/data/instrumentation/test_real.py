"""Virtual instrumentation on real vertebrae."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tests.data.instrumentation.painted_vertebrae import shaft_of, share_inside

from diffux2ct.data.instrumentation import instrument
from diffux2ct.data.io.ct_image import CtImage, LabelImage
from diffux2ct.data.labels import LABELS
from diffux2ct.errors import UserError

GREY = {"0510": [85, 122, 127], "0532": [52, 96, 103], "0646": [5, 55, 66], "0694": [6, 57, 66]}


def colonog(root: Path, name: str) -> tuple[CtImage, LabelImage]:
    """A real scan of 8-bit grey, turned into HU by what air, fat and muscle have, and its vertebra labels."""
    import SimpleITK as sitk

    from diffux2ct.data.io.volume import read_labels

    image = sitk.ReadImage(str(root / "labelled_8bit" / f"colonog_{name}_ct.nii.gz"))
    image = sitk.DICOMOrient(image, "LPS")
    slope, offset = np.polyfit(GREY[name], [-990, -105, 55], 1)
    hu = (sitk.GetArrayFromImage(image) * slope + offset).clip(-1024, 3071).astype(np.int16)
    ct = CtImage(hu, tuple(map(float, image.GetSpacing())), tuple(map(float, image.GetOrigin())))
    return ct, read_labels(root / "labelled_8bit" / f"colonog_{name}_label.nii.gz")


def canal_depth(labels: LabelImage, value: int) -> np.ndarray:
    """Depth (mm, negative outside) inside the canal of a vertebra, found without the package: in axial sections, the
    hole of the thinnest slab around each whose shadow has one."""
    mask = labels.labels == value
    rows = np.flatnonzero(mask.any((1, 2)))
    canal = np.zeros_like(mask)
    for k in rows:
        for half in range(len(rows)):
            shadow = mask[max(k - half, 0) : k + half + 1].any(0)
            holes, _ = ndimage.label(ndimage.binary_fill_holes(shadow) & ~shadow)
            sizes = np.bincount(holes.ravel(), minlength=2)[1:]
            if sizes.max() * labels.spacing[0] * labels.spacing[1] >= 80:
                canal[k] = holes == sizes.argmax() + 1
                break
    assert canal.any()
    inside, outside = (ndimage.distance_transform_edt(c) - 0.5 for c in (canal, ~canal))
    return np.where(canal, inside, -outside) * labels.spacing[0]


@pytest.mark.real
@pytest.mark.parametrize(("name", "seed"), [("0510", 0), ("0532", 1), ("0646", 2)])
def test_screws_lie_in_real_vertebrae_and_leave_the_canal_free(shared_data, name, seed):
    ct, labels = colonog(shared_data, name)
    _, _, record = instrument(ct, labels, seed=seed, vertebrae=("L3", "L4"), bilateral=1)
    assert len(record["screws"]) == 4
    for vertebra in ("L3", "L4"):
        canal = canal_depth(labels, LABELS[vertebra])
        for screw in (s for s in record["screws"] if s["vertebra"] == vertebra):
            assert share_inside(screw, labels) >= 0.9
            index = (shaft_of(screw) - labels.origin) / labels.spacing
            depth = ndimage.map_coordinates(canal, index.T[::-1], order=1, mode="nearest")
            assert depth.max() < 0.0  # mm of the screw within the canal


@pytest.mark.real
def test_labels_of_another_scan_are_refused(shared_data):
    # The labels of this one do not lie on the bones of its image; nothing there says why.
    with pytest.raises(UserError, match="do not lie on the scan's bones"):
        instrument(*colonog(shared_data, "0694"), seed=0)
