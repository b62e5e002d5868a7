"""The pelvis and the thorax of the same patients: what must be where, in which HU, under which label."""

import numpy as np
import pytest

from diffux2ct.data.labels import LABELS, label_name
from diffux2ct.data.phantom import RANGES, Phantom, make_phantom, ranges_table
from diffux2ct.data.phantom.anatomy import draw_anatomy


@pytest.fixture(scope="module")
def pelves() -> list[Phantom]:
    return [make_phantom(0, index, size=64, region="pelvis") for index in range(10)]


@pytest.fixture(scope="module")
def chests() -> list[Phantom]:
    return [make_phantom(0, index, size=64, region="thorax") for index in range(8)]


def centre_of(phantom: Phantom, name: str) -> np.ndarray:
    """Mean (z, y, x) index of the voxels with this label."""
    return np.argwhere(phantom.labels == LABELS[name]).mean(0)


def _extent(phantom: Phantom, name: str) -> np.ndarray:
    """Size (z, y, x) in mm of what carries a label."""
    at = np.argwhere(phantom.labels == LABELS[name])
    return (at.max(0) - at.min(0) + 1) * phantom.spacing[0]


def test_the_regions_of_a_patient_share_one_frame(pelves: list[Phantom], chests: list[Phantom]) -> None:
    """L5 of the lumbar volume lies where L5 of the pelvis does, T12 where that of the thorax does."""

    def where(phantom: Phantom, name: str) -> np.ndarray:
        return centre_of(phantom, name)[::-1] * phantom.spacing[0] + phantom.origin

    for index in (0, 1, 2):
        lumbar = make_phantom(0, index, size=64)
        assert lumbar.meta["anatomy"] == pelves[index].meta["anatomy"] == chests[index].meta["anatomy"]
        assert np.abs(where(lumbar, "L5") - where(pelves[index], "L5")).max() < 1.0
        assert lumbar.origin[2] - pelves[index].origin[2] > 40
        assert chests[index].origin[2] - lumbar.origin[2] > 150


def test_pelvis_is_whole_and_symmetric(pelves: list[Phantom]) -> None:
    for phantom in pelves:
        index = phantom.meta["index"]
        left, right, sacrum = (centre_of(phantom, n) for n in ("left_hip", "right_hip", "sacrum"))
        assert np.abs(left - right)[:2].max() < 3, index
        assert 70 < (left[2] - right[2]) * phantom.spacing[0] < 190, index
        assert sacrum[1] > left[1] + 5, index
        for name in ("left_hip", "right_hip"):
            height, depth, _ = _extent(phantom, name)
            assert 170 < height < 240, (index, name)
            assert 110 < depth < 200, (index, name)
        head = centre_of(phantom, "left_femur")
        assert head[2] > left[2], index
        assert head[0] < left[0], index
        assert centre_of(phantom, "coccyx")[0] < sacrum[0] - 8, index
        heights = [centre_of(phantom, n)[0] for n in ("sacrum", "L5", "L4")]
        assert (np.diff(heights) * phantom.spacing[0] > 18).all(), index


def test_some_hips_carry_metal(pelves: list[Phantom]) -> None:
    kinds = {p.meta["hip_implant"] for p in pelves}
    assert kinds == {"", "prosthesis", "plate"}
    for phantom in pelves:
        names = {label_name(int(v)) for v in np.unique(phantom.labels) if v}
        prostheses = {n for n in names if n.endswith("prosthesis")}
        assert len(prostheses) == (phantom.meta["hip_implant"] == "prosthesis")
        assert ("bone_plate" in names) == (phantom.meta["hip_implant"] == "plate")
        if prostheses:
            label = LABELS[prostheses.pop()]
            assert 1500 < phantom.hu[phantom.labels == label].mean() <= 3071
            bone = "left_femur" if label_name(label).startswith("left") else "right_femur"
            other = "right_femur" if bone == "left_femur" else "left_femur"
            counts = [(phantom.labels == LABELS[n]).sum() for n in (bone, other)]
            assert counts[0] < 0.9 * counts[1]  # its head and neck are gone


def test_bladder_is_water_behind_the_pubis(pelves: list[Phantom]) -> None:
    for phantom in pelves:
        z, y, x = np.mean([centre_of(phantom, "left_hip"), centre_of(phantom, "right_hip")], 0)
        ring = phantom.hu[int(z) - 12 : int(z) + 4, int(y) - 14 : int(y) + 4, int(x) - 6 : int(x) + 6]
        water = ((ring > -35) & (ring < 30)).mean()
        assert 0.15 < water < 1.0, phantom.meta["index"]


def test_chest_holds_lungs_heart_and_every_rib_bearing_vertebra(chests: list[Phantom]) -> None:
    for phantom in chests:
        index = phantom.meta["index"]
        names = {label_name(int(v)) for v in np.unique(phantom.labels) if v}
        wanted = {f"T{i}" for i in range(3, 11)} | {"ribs", "sternum", "left_scapula", "right_scapula"}
        assert wanted <= names, (index, wanted - names)
        lung = (phantom.hu > -960) & (phantom.hu < -650) & (phantom.labels == 0)
        assert 0.10 < lung.mean() < 0.5, index
        assert -925 < np.median(phantom.hu[lung]) < -815, index
        assert centre_of(phantom, "sternum")[1] < centre_of(phantom, "T7")[1] - 15, index
        heights = [centre_of(phantom, f"T{i}")[0] for i in range(10, 2, -1)]
        steps = np.diff(heights) * phantom.spacing[0]
        assert ((steps > 15) & (steps < 34)).all(), index
        # The heart lies to the left: there the lung is smaller.
        z = int(centre_of(phantom, "T9")[0])
        x = round(float(centre_of(phantom, "T9")[2]))
        low = lung[z - 3 : z + 3]
        assert low[..., :x].sum() > 0.95 * low[..., x:].sum(), index


def test_arms_up_or_down_is_seen_in_the_collar_bones() -> None:
    for index in range(4):
        phantom = make_phantom(2, index, size=64, extent_mm=360.0, region="thorax")
        for side, sign in (("left", 1), ("right", -1)):
            humerus = centre_of(phantom, f"{side}_humerus")
            assert sign * (humerus[2] - 31.5) > 18
            above = (humerus[0] - centre_of(phantom, "T2")[0]) * phantom.spacing[0]
            assert (above > 5) == phantom.meta["arms_up"], index


@pytest.mark.parametrize("region", ["pelvis", "thorax"])
def test_a_region_at_32_is_the_block_average_of_itself_at_128(region: str) -> None:
    large = make_phantom(0, 1, size=128, region=region).hu.astype(np.float64)
    reference = large.reshape(32, 4, 32, 4, 32, 4).mean((1, 3, 5))
    difference = np.abs(make_phantom(0, 1, size=32, region=region).hu - reference)
    assert 0.5 < difference.mean() < 12.0
    assert np.percentile(difference, 99) < 120


def test_every_value_is_drawn_inside_its_documented_range() -> None:
    drawn = [draw_anatomy(np.random.default_rng(i)).values for i in range(200)]
    for name, bounds in RANGES.items():
        values = np.array([v[name] for v in drawn])
        assert bounds.low <= values.min() < bounds.low + 0.1 * (bounds.high - bounds.low), name
        assert bounds.high >= values.max() > bounds.high - 0.1 * (bounds.high - bounds.low), name
    assert ranges_table().count("\n") == len(RANGES) + 1
