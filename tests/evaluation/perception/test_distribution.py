import numpy as np
import pytest
import scipy.linalg
import torch

from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception.distribution import (
    Moments,
    SliceMoments,
    frechet_distance,
    kernel_distance,
    slice_frechet_distances,
)


def gaussian(count, width, seed, mean=0.0, scale=1.0):
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(width).normal(size=(width, width)) / np.sqrt(width) * scale
    return torch.from_numpy(random.normal(size=(count, width)) @ mixing + mean)


def fid_by_matrix_root(a, b):
    """The formula as published, with scipy's general matrix root: independent of ours."""
    a, b = a.numpy(), b.numpy()
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b).real
    difference = a.mean(0) - b.mean(0)
    return difference @ difference + np.trace(covariance_a + covariance_b - 2 * root)


def test_frechet_distance_equals_the_published_formula():
    a, b = gaussian(300, 24, 0), gaussian(200, 24, 1, mean=0.3, scale=1.4)
    result = frechet_distance(a, b)
    assert result.value == pytest.approx(fid_by_matrix_root(a, b), rel=1e-9)
    assert (result.num_a, result.num_b) == (300, 200)


def test_frechet_distance_equals_the_published_formula_with_fewer_samples_than_dimensions():
    """The matrix root of a singular product is exact to about the root of the rounding: hence 1e-5."""
    a, b = gaussian(12, 40, 0), gaussian(9, 40, 1, mean=0.3, scale=1.4)
    assert frechet_distance(a, b).value == pytest.approx(fid_by_matrix_root(a, b), rel=1e-5)


def test_frechet_distance_of_features_and_of_moments_is_the_same():
    for count in (10, 60):  # below and above the 30 dimensions
        a, b = gaussian(count, 30, 0), gaussian(count + 3, 30, 1, mean=0.2)
        first, second = Moments(30), Moments(30)
        first.add(a)
        for part in b.split(7):
            second.add(part)
        expected = frechet_distance(a, b).value
        assert frechet_distance(first, second).value == pytest.approx(expected, rel=1e-8)
        assert frechet_distance(a, second).value == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_known_gaussians():
    """Standardized samples have the moments of N(0, 1) exactly; scaled by s, they are (1 - s)^2 apart per axis."""
    z = gaussian(500, 3, 0)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.0, 4.0])
    distance = frechet_distance(z, z * scale + shift).value
    assert distance == pytest.approx(25 + 0 + 1 + 0.25, rel=1e-9)


@pytest.mark.parametrize("count", [5, 200])
def test_a_set_is_at_no_distance_from_itself(count):
    a = gaussian(count, 32, 0)
    assert frechet_distance(a, a).value == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a.flip(0)).value == pytest.approx(0, abs=1e-9)


def test_a_set_without_spread_keeps_the_others_variance():
    """As for the mean volume, which is the same for every case."""
    a = gaussian(50, 8, 0)
    constant = a.mean(0).expand(50, -1)
    assert frechet_distance(constant, a).value == pytest.approx(float(torch.cov(a.T).trace()), rel=1e-9)


def test_moments_are_those_of_all_batches():
    features = gaussian(101, 6, 0, mean=1e4)  # a large mean, on which sums of squares would lose digits
    whole, parts = Moments(6), (Moments(6), Moments(6))
    for part in features[:40].split(9):
        parts[0].add(part)
    parts[1].add(features[40:])
    parts[1].add(features[:0])
    for part in parts:
        whole.merge(part)
    assert whole.count == 101
    np.testing.assert_allclose(whole.mean, features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9)


def kid_by_loops(a, b):
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    a, b = a.tolist(), b.tolist()
    aa = [kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]
    bb = [kernel(b[i], b[j]) for i in range(len(b)) for j in range(len(b)) if i != j]
    ab = [kernel(x, y) for x in a for y in b]
    return sum(aa) / len(aa) + sum(bb) / len(bb) - 2 * sum(ab) / len(ab)


def test_kernel_distance_equals_the_explicit_double_loop():
    a, b = gaussian(17, 5, 0), gaussian(13, 5, 1, mean=0.3)
    result = kernel_distance(a, b)
    assert result.value == pytest.approx(kid_by_loops(a, b), rel=1e-10)
    assert (result.num_a, result.num_b, result.subset_size, result.num_subsets) == (17, 13, 6, 100)


def test_pairs_are_left_out_of_the_kernel_distance():
    """Pairs share most of what they are; their two distributions are the same, so the distance is 0."""
    a = gaussian(40, 6, 0)
    assert kernel_distance(a, a, paired=True).value == pytest.approx(0, abs=1e-12)
    assert kernel_distance(a, a).value < -0.01
    values = {True: [], False: []}
    for seed in range(60):
        shared, own, other = (gaussian(20, 6, 3 * seed + k) for k in range(3))
        for paired in values:
            pair = (0.9 * shared + 0.436 * own, 0.9 * shared + 0.436 * other)
            values[paired].append(kernel_distance(*pair, paired=paired, num_subsets=1).value)
    in_errors = {paired: np.mean(v) / (np.std(v, ddof=1) / np.sqrt(len(v))) for paired, v in values.items()}
    assert abs(in_errors[True]) < 3.5
    assert in_errors[False] < -5
    with pytest.raises(UserError, match="40 and 39 samples are no pairs"):
        kernel_distance(a, a[1:], paired=True)


def test_kernel_distance_in_blocks_is_the_one_in_a_piece():
    a, b = gaussian(1500, 4, 0), gaussian(1100, 4, 1, mean=0.1)
    kernels = [(x @ y.T / 4 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [float(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    expected = sum(within) - 2 * float(kernels[2].mean())
    assert kernel_distance(a, b, num_subsets=1).value == pytest.approx(expected, rel=1e-9)


def test_the_deviation_is_that_of_the_subsets_and_follows_the_seed():
    a, b = gaussian(200, 6, 0), gaussian(200, 6, 1, mean=0.2)
    result = kernel_distance(a, b, subset_size=50, num_subsets=200, seed=3)
    assert result == kernel_distance(a, b, subset_size=50, num_subsets=200, seed=3)
    other = kernel_distance(a, b, subset_size=50, num_subsets=200, seed=4)
    assert other.value == result.value
    assert other.deviation != result.deviation
    # Against the spread of fresh samples of that size.
    fresh = [
        kernel_distance(gaussian(50, 6, 2 * s), gaussian(50, 6, 2 * s + 1, 0.2), num_subsets=1) for s in range(200)
    ]
    assert result.deviation == pytest.approx(np.std([f.value for f in fresh], ddof=1), rel=0.4)


def test_few_samples_raise_the_frechet_distance_and_not_the_kernel_distance():
    """Pairs of samples of one and the same distribution, whose distance is 0."""
    counts, trials = (20, 80, 320), 24
    frechet, kernel = [], []
    for count in counts:
        pairs = [(gaussian(count, 16, 2 * s), gaussian(count, 16, 2 * s + 1)) for s in range(trials)]
        frechet.append(np.mean([frechet_distance(a, b).value for a, b in pairs]))
        values = [kernel_distance(a, b, num_subsets=1).value for a, b in pairs]
        kernel.append(np.mean(values) / (np.std(values, ddof=1) / np.sqrt(trials)))
    assert frechet[0] > 2 * frechet[1] > 4 * frechet[2] > 0
    assert np.abs(kernel).max() < 3.5, "the mean kernel distance lies within its standard error of 0"


def test_too_few_samples_and_unfit_features_are_told():
    a = gaussian(10, 4, 0)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(UserError, match="features: 1 samples give no distribution"):
            distance(a, a[:1])
        with pytest.raises(UserError, match="4 against 3 dimensions; use one encoder"):
            distance(a, a[:, :3])
        with pytest.raises(UserError, match="NaN or infinite"):
            distance(a, a.log())
    moments = Moments(4)
    moments.add(a[:1])
    with pytest.raises(UserError, match="1 samples"):
        frechet_distance(moments, a)


class RowMeans:
    """Features of a slice: the mean of its upper and of its lower half, and its corner."""

    def features(self, slices):
        half = slices.shape[1] // 2
        halves = slices[:, :half].mean((1, 2)), slices[:, half:].mean((1, 2))
        return torch.stack([*halves, slices[:, 0, 0]], 1)


def test_slices_of_all_axes_are_pooled_and_told_apart():
    generator = torch.Generator().manual_seed(0)
    a = [torch.rand(4, 6, 8, generator=generator) for _ in range(3)]
    b = [torch.rand(4, 6, 8, generator=generator) + 0.2 for _ in range(2)]
    encoder = RowMeans()
    distances = slice_frechet_distances(SliceMoments(encoder).add(iter(a)), SliceMoments(encoder).add(iter(b)))
    assert {name: (d.num_a, d.num_b) for name, d in distances.items()} == {
        "all": (54, 36),
        "axial": (12, 8),
        "coronal": (18, 12),
        "sagittal": (24, 16),
    }

    def by_hand(volumes, axis):
        slices = []
        for v in volumes:
            for i in range(v.shape[axis]):
                image = v.select(axis, i)
                # Coronal and sagittal rows run along z, whose first voxel is the lowest one.
                slices.append(image if axis == 0 else image.flip(0))
        return torch.cat([encoder.features(image[None]) for image in slices])

    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        expected = frechet_distance(by_hand(a, axis), by_hand(b, axis)).value
        assert distances[name].value == pytest.approx(expected, rel=1e-6), name
    pooled = [torch.cat([by_hand(v, axis) for axis in range(3)]) for v in (a, b)]
    assert distances["all"].value == pytest.approx(frechet_distance(*pooled).value, rel=1e-6)
    with pytest.raises(UserError, match="no volumes"):
        SliceMoments(encoder).pooled()
