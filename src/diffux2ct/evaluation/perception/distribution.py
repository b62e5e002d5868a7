"""Distances between sets of features: Frechet (FID, Heusel et al. 2017) and kernel (KID, Binkowski et al. 2018).

The Frechet distance of few samples is too large, and falls as more come; the kernel distance is unbiased at any
number. Compare either only at equal sample counts, which therefore come with every value.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import Metric, computes

AXES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class FrechetDistance:
    """``value``: the squared distance |m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with its sample counts."""

    value: float
    num_a: int
    num_b: int


@dataclass(frozen=True)
class KernelDistance:
    """``value``: unbiased squared MMD of all samples, which may fall below zero where the sets agree.

    ``deviation``: standard deviation of the same estimate among ``num_subsets`` random subsets of ``subset_size``.
    """

    value: float
    deviation: float
    num_a: int
    num_b: int
    subset_size: int
    num_subsets: int


class Moments:
    """Mean and covariance of features that come in batches, in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean: Float64[np.ndarray, " c"] = np.zeros(width)
        self._scatter: Float64[np.ndarray, "c c"] = np.zeros((width, width))

    def add(self, features: Float[Tensor, "n c"]) -> None:
        """Take in a batch; the order and size of batches do not matter (Chan et al.'s update)."""
        values = _checked(features)
        if not len(values):
            return
        mean = values.mean(axis=0)
        centred = values - mean
        self._merge(len(values), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Take in all that another one has seen."""
        self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        if not total:
            return
        step = mean - self.mean
        self._scatter = self._scatter + scatter + np.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def covariance(self) -> Float64[np.ndarray, "c c"]:
        """Unbiased, that is over n - 1. UserError: fewer than two samples."""
        _check_count(self.count)
        return self._scatter / (self.count - 1)


def _distance(key: str, title: str, about: str) -> Metric:
    return Metric(key, title, larger_is_better=False, group="Perceptual", about=about)


@computes(
    _distance("fid_medclip", "FID (MedCLIP)", "Fréchet distance of slices' features; falls with their number"),
    _distance("fd_ct", "FD (CT encoder)", "Fréchet distance of volumes' features from a 3D CT encoder, not FID"),
)
def frechet_distance(a: Float[Tensor, "n c"] | Moments, b: Float[Tensor, "m c2"] | Moments) -> FrechetDistance:
    """Frechet distance between the Gaussians of the means and covariances of two sets: feature matrices or `Moments`.

    With C_a = A A^T and C_b = B B^T, Tr (C_a C_b)^(1/2) is the sum of the singular values of A^T B. So no root of a
    near-singular product is taken, nothing is added to the diagonals, and sets with fewer samples than dimensions,
    whose covariances are singular, are as exact as others: features give A as their centred rows, moments through
    an eigendecomposition whose rounding below the rank is cut off.

    UserError: fewer than two samples, different widths, or features that are not finite.
    """
    (count_a, mean_a, root_a), (count_b, mean_b, root_b) = _factor(a), _factor(b)
    _check_width(len(root_a), len(root_b))
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    traces = (root_a**2).sum() + (root_b**2).sum()
    value = float(((mean_a - mean_b) ** 2).sum() + traces - 2 * cross)
    return FrechetDistance(max(value, 0.0), count_a, count_b)


@computes(_distance("kd_ct", "KD (CT encoder)", "unbiased kernel distance of the same features; may be negative"))
def kernel_distance(
    a: Float[Tensor, "n c"],
    b: Float[Tensor, "m c2"],
    *,
    paired: bool = False,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy with KID's kernel (x.y / c + 1)^3.

    The value is taken from all samples, which varies less than KID's usual mean over subsets and has the same
    expectation; the subsets give the deviation. They are drawn without replacement, at most half of the smaller set,
    so that they differ.

    a, b: feature matrices with a sample per row. paired: row i of both is of one patient, such as a reconstruction and
    its truth. Such pairs are alike beyond what the distributions are, which would pull the value below zero, so they
    are left out (Gretton et al. 2012, Lemma 6): a set against itself is then at exactly 0. subset_size: samples of each
    set in a subset, at most. seed: of the subsets.

    UserError: fewer than two samples, different widths, pairs that are none, or features that are not finite.
    """
    first, second = _checked(a), _checked(b)
    _check_count(min(len(first), len(second)))
    if paired and len(first) != len(second):
        raise UserError(f"features: {len(first)} and {len(second)} samples are no pairs; give one of each per case")
    _check_width(first.shape[1], second.shape[1])
    size = max(2, min(subset_size, len(first) // 2, len(second) // 2))
    random = np.random.default_rng(seed)
    estimates = []
    for _ in range(num_subsets):
        rows = random.choice(len(first), size, replace=False)
        partners = rows if paired else random.choice(len(second), size, replace=False)
        estimates.append(_mmd2(first[rows], second[partners], paired))
    deviation = float(np.std(estimates, ddof=1)) if num_subsets > 1 else float("nan")
    return KernelDistance(_mmd2(first, second, paired), deviation, len(first), len(second), size, num_subsets)


@dataclass
class SliceMoments:
    """Moments of the slices of volumes that come one after another: per axis, and of all three pooled.

    encoder: a `MedClipEncoder`, or another whose ``features`` maps slices [n, h, w] in [-1, 1] to [n, c].
    """

    encoder: Any
    per_axis: dict[str, Moments] = field(default_factory=dict)

    def add(self, volumes: Iterable[Float[Tensor, "d h w"]]) -> "SliceMoments":
        """Take in every slice of volumes in [-1, 1]; coronal and sagittal ones head up, as encoders were trained."""
        for volume in volumes:
            for axis, name in enumerate(AXES):
                slices = volume.movedim(axis, 0)
                features = self.encoder.features(slices if axis == 0 else slices.flip(1))
                self.per_axis.setdefault(name, Moments(features.shape[1])).add(features)
        return self

    def pooled(self) -> Moments:
        """Of the slices of all axes together."""
        if not self.per_axis:
            raise UserError("features: no volumes were added; give at least one")
        whole = Moments(len(next(iter(self.per_axis.values())).mean))
        for moments in self.per_axis.values():
            whole.merge(moments)
        return whole


def slice_frechet_distances(a: SliceMoments, b: SliceMoments) -> Mapping[str, FrechetDistance]:
    """Frechet distances of two sets of volumes by their slices: ``all`` axes pooled, then each axis alone."""
    distances = {"all": frechet_distance(a.pooled(), b.pooled())}
    return distances | {name: frechet_distance(a.per_axis[name], b.per_axis[name]) for name in AXES}


def _factor(features: Tensor | Moments) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of samples, their mean, and a root [c, rank] of their covariance: root @ root.T."""
    if isinstance(features, Moments):
        values, vectors = np.linalg.eigh(features.covariance)
        kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
        return features.count, features.mean, vectors[:, kept] * np.sqrt(values[kept])
    samples = _checked(features)
    _check_count(len(samples))
    if len(samples) > samples.shape[1]:
        moments = Moments(samples.shape[1])
        moments.add(features)
        return _factor(moments)
    mean = samples.mean(axis=0)
    return len(samples), mean, (samples - mean).T / np.sqrt(len(samples) - 1)


def _mmd2(a: np.ndarray, b: np.ndarray, paired: bool) -> float:
    within = sum(_kernel_sum(x, x, skip_diagonal=True) / (len(x) * (len(x) - 1)) for x in (a, b))
    between = _kernel_sum(a, b, skip_diagonal=paired) / (len(a) * (len(b) - (1 if paired else 0)))
    return float(within - 2 * between)


def _kernel_sum(a: np.ndarray, b: np.ndarray, skip_diagonal: bool) -> float:
    """In blocks of rows, so that memory grows with the number of samples and not with its square."""
    total = 0.0
    for start in range(0, len(a), 1024):
        kernel = (a[start : start + 1024] @ b.T / a.shape[1] + 1) ** 3
        total += kernel.sum()
        if skip_diagonal:
            total -= np.trace(kernel, offset=start)
    return total


def _checked(features: Tensor) -> Float64[np.ndarray, "n c"]:
    values = features.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise UserError("features: NaN or infinite values; check the volumes that they come from")
    return values


def _check_width(a: int, b: int) -> None:
    if a != b:
        raise UserError(f"features: {a} against {b} dimensions; use one encoder")


def _check_count(count: int) -> None:
    if count < 2:
        raise UserError(f"features: {count} samples give no distribution; evaluate at least two cases")
