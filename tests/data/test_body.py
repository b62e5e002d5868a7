from pathlib import Path

import numpy as np
import pytest

from diffux2ct.data.body import body_mask, remove_couch

SPACING = (2.0, 2.0, 2.5)
SHAPE = (24, 150, 200)


def ellipse(centre, radii) -> np.ndarray:
    """A cylinder [D, H, W] along z with an elliptic section; voxels (y, x)."""
    _, y, x = np.indices(SHAPE)
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1


def torso(gap: int = 2) -> dict[str, np.ndarray]:
    """A trunk with lungs and a spine, two arms beside it, a hollow couch ``gap`` voxels behind it, and a tube.

    Returns the HU and where each part is.
    """
    generator = np.random.default_rng(0)
    hu = generator.normal(-1000, 15, SHAPE)
    trunk = ellipse((60, 100), (40, 62))
    lungs = ellipse((58, 72), (26, 20)) | ellipse((58, 128), (26, 20))
    spine = ellipse((82, 100), (9, 9))
    arms = ellipse((70, 20), (13, 12)) | ellipse((70, 180), (13, 12))
    hu[trunk | arms] = generator.normal(20, 20, SHAPE)[trunk | arms]
    hu[lungs] = generator.normal(-850, 40, SHAPE)[lungs]
    hu[spine] = 400
    _, y, x = np.indices(SHAPE)
    top = 100 + gap
    shell = ((y >= top) & (y < top + 2)) | ((y >= top + 14) & (y < top + 16))
    couch = shell & (x > 20) & (x < 180)
    hu[couch] = 150
    foam = (y >= top + 2) & (y < top + 14) & (x > 20) & (x < 180)
    hu[foam] = -900
    tube = ellipse((14, 60), (2, 2))
    hu[tube] = 100
    hu[(y - 75) ** 2 + (x - 100) ** 2 > 99**2] = -1024
    patient = trunk | arms
    return {"hu": hu.astype(np.int16), "patient": patient, "couch": couch & ~patient, "foam": foam, "tube": tube}


@pytest.mark.parametrize(("gap", "turn"), [(3, "supine"), (1, "prone"), (0, "supine")])
def test_patient_stays_and_couch_goes(gap: int, turn: str) -> None:
    scan = torso(gap)
    if turn == "prone":
        scan = {name: array[:, ::-1] for name, array in scan.items()}
    mask = body_mask(scan["hu"], SPACING)
    assert mask[scan["patient"]].all()  # lungs too, and both arms
    left = mask[scan["couch"]].mean()
    # Where a shell lies flush with the back, as far as a disc of 4 mm reaches it counts as thick.
    assert left < (0.12 if gap == 0 else 0.01), left
    assert not mask[scan["tube"]].any()
    cleared = remove_couch(scan["hu"], SPACING)
    assert cleared.dtype == np.int16
    np.testing.assert_array_equal(cleared[mask], scan["hu"][mask])
    assert set(np.unique(cleared[~mask])) == {-1024}
    assert not mask[:, :10].any() if turn == "supine" else not mask[:, -10:].any()


def test_skin_keeps_its_partial_volume() -> None:
    scan = torso(3)
    scan["hu"][ellipse((60, 100), (41, 63)) & ~scan["patient"]] = -700
    mask = body_mask(scan["hu"], SPACING)
    assert mask[(scan["hu"] == -700) & ~scan["couch"] & ~scan["foam"]].mean() > 0.9


def test_separate_legs_stay() -> None:
    legs = ellipse((70, 60), (30, 32)) | ellipse((70, 140), (30, 32))
    bone = ellipse((70, 60), (6, 6)) | ellipse((70, 140), (6, 6))
    hu = np.where(legs, 30, -1000)
    hu[bone] = 800
    assert body_mask(hu.astype(np.float32), SPACING)[legs].all()


def test_lung_cut_open_by_the_field_of_view_stays() -> None:
    scan = torso(3)
    narrow = scan["hu"][:, :, 60:150]  # the right lung reaches the edge
    mask = body_mask(narrow, SPACING)
    assert mask[scan["patient"][:, :, 60:150]].all()


def test_nobody_there_changes_nothing() -> None:
    couch = np.where(torso()["couch"], 150, -1000).astype(np.int16)
    assert not body_mask(couch, SPACING).any()
    np.testing.assert_array_equal(remove_couch(couch, SPACING), couch)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 5.0), (4.0, 4.0, 4.0)])
def test_any_spacing(spacing) -> None:
    shape = [round(n * s / t) for n, s, t in zip(SHAPE, SPACING[::-1], spacing[::-1], strict=True)]
    index = np.ix_(
        *[np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int) for n, m in zip(shape, SHAPE, strict=True)]
    )
    scan = {name: array[index] for name, array in torso(4).items()}
    mask = body_mask(scan["hu"], spacing)
    assert mask[scan["patient"]].mean() > 0.9999
    assert mask[scan["couch"]].mean() < 0.03


@pytest.mark.real
def test_no_labelled_bone_is_removed_from_real_scans(shared_data: Path) -> None:
    from diffux2ct.data.io.volume import read_ct, read_labels

    folder = shared_data / "labelled_8bit"
    # Grey levels of these scans to HU, by their air, fat and muscle; one patient lies prone.
    for name, line in {"colonog_0646": (17.31, -1073.5), "colonog_0694": (17.39, -1094.7)}.items():
        ct = read_ct(folder / f"{name}_ct.nii.gz", None, line)
        labels = read_labels(folder / f"{name}_label.nii.gz").labels
        mask = body_mask(ct.hu, ct.spacing)
        assert mask[labels > 0].all()
        assert 0.1 < (~mask & (ct.hu > -200)).sum() * np.prod(ct.spacing) / 1e6 < 0.5  # litres of couch
