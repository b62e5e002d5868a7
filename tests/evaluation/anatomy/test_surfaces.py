import numpy as np
import pytest
from scipy import ndimage

from diffux2ct.evaluation.anatomy.surfaces import hd95, surface_distances, surface_voxels


def blob(seed: int, shape=(11, 13, 9)) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return field > np.quantile(field, 0.8)


def by_brute_force(a: np.ndarray, b: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Both directions, voxel by voxel: a voxel is surface if one of its six neighbours is not in the mask."""

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        found = []
        for z, y, x in np.argwhere(padded):
            neighbours = [(z + 1, y, x), (z - 1, y, x), (z, y + 1, x), (z, y - 1, x), (z, y, x + 1), (z, y, x - 1)]
            if not all(padded[n] for n in neighbours):
                found.append(((x - 1) * spacing[0], (y - 1) * spacing[1], (z - 1) * spacing[2]))
        return np.array(found)

    p, q = surface(a), surface(b)
    between = np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1))
    return between.min(1), between.min(0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 2.5), (3.0, 0.5, 1.3)])
def test_distances_equal_those_by_brute_force(spacing):
    a, b = blob(1), blob(2)
    there, back = by_brute_force(a, b, spacing)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hd95(a, b, spacing) == pytest.approx(expected, abs=1e-9)
    found = surface_distances(a, b, spacing)
    assert found is not None
    assert found.average() == pytest.approx(np.r_[there, back].mean(), abs=1e-9)
    assert found.hausdorff(100) == pytest.approx(max(there.max(), back.max()), abs=1e-9)


def test_the_worse_direction_counts():
    # The prediction has a piece too much: all of the truth's surface is near, but not all of the prediction's.
    truth = np.zeros((20, 12, 12), bool)
    truth[2:6, 2:10, 2:10] = True
    prediction = truth.copy()
    prediction[16, 2:10, 2:10] = True
    found = surface_distances(prediction, truth, (1, 1, 2))
    assert found is not None
    assert np.percentile(found.from_truth, 95) == 0.0
    assert found.hausdorff() == pytest.approx(22.0)  # 11 slices of 2 mm
    assert found.hausdorff() == hd95(truth, prediction, (1, 1, 2))


def test_a_shift_along_an_axis_of_a_slab():
    truth = np.zeros((24, 16, 16), bool)
    truth[8:12] = True
    moved = np.roll(truth, 3, 0)
    assert hd95(moved, truth, (0.5, 0.5, 2.5)) == pytest.approx(7.5)
    assert hd95(truth, truth, (0.5, 0.5, 2.5)) == 0.0


def test_what_one_lacks_has_no_distance():
    full, empty = blob(3), np.zeros((11, 13, 9), bool)
    for a, b in ((full, empty), (empty, full), (empty, empty)):
        assert hd95(a, b, (1, 1, 1)) is None
        assert surface_distances(a, b, (1, 1, 1)) is None
    assert surface_voxels(np.ones((3, 3, 3), bool)).shape == (26, 3)  # the volume's edge is an outside


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.7, 0.9, 2.5)])
def test_parity_with_monai(spacing):
    import torch
    from monai import metrics

    a, b = (torch.from_numpy(blob(seed, (20, 24, 18)))[None, None].float() for seed in (5, 6))
    kwargs = {"include_background": True, "spacing": [spacing[::-1]]}
    theirs = metrics.compute_hausdorff_distance(a, b, percentile=95, **kwargs).item()
    mean = metrics.compute_average_surface_distance(a, b, symmetric=True, **kwargs).item()
    ours = a[0, 0].bool().numpy(), b[0, 0].bool().numpy(), spacing
    assert hd95(*ours) == pytest.approx(theirs, rel=1e-5)
    assert surface_distances(*ours).average() == pytest.approx(mean, rel=1e-5)
