"""Conformal scaling of intervals by patient: mean +- scale * (standard deviation + floor).

A patient's loss is the share of voxels outside; its risk is the expected loss of a new patient who is exchangeable with
those calibrated on. Conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814) holds the risk at ``alpha`` on
average over calibrations; RCPS (Bates et al. 2021, arXiv 2101.02703, with their Hoeffding-Bentkus bound) holds it in a
share 1 - ``delta`` of them. Voxels of a patient are not independent: patients are counted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import xlogy
from scipy.stats import binom

from diffux2ct.arguments import Count, Positive, Precision, Range, Seed, read
from diffux2ct.command_line import command
from diffux2ct.data.prepared.writer import read_case
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import plural
from diffux2ct.files.atomic import sha256_of, write_text

SCALES = np.geomspace(1e-3, 1e4, 8060)
"""Candidates of the scale, 0.2 % apart; fixed before any data are seen, as the guarantee needs."""

_EPS = 1e-9  # of counts that rounding may have raised
FORMAT = 2

Level = Annotated[float, Range(0, 1, open=True)]


@dataclass(frozen=True)
class Rule:
    """A rule that chooses the scale: the interval settings of ``evaluate.py uncertainty=calibrate``.

    method: "crc" or "rcps". alpha: share of a patient's voxels outside. delta: of rcps, share of calibrations whose
    risk may exceed alpha. floor: HU added to the standard deviation.
    """

    method: Literal["crc", "rcps"] = "crc"
    alpha: Level = 0.1
    delta: Level = 0.1
    floor: Positive = 10.0

    def accepts(self, risk: Float[np.ndarray, " n"], num_patients: int) -> Bool[np.ndarray, " n"]:
        """True for a mean loss of ``num_patients`` patients that is small enough for the risk to be controlled."""
        if self.method == "crc":
            return (num_patients * risk + 1) / (num_patients + 1) <= self.alpha + _EPS
        return hoeffding_bentkus(risk, num_patients, self.alpha) <= self.delta + _EPS

    @property
    def least_patients(self) -> int:
        """Patients from which on any scale is accepted: with fewer, not even a loss of 0 would do."""
        return next(n for n in count(1) if self.accepts(np.zeros(1), n)[0])

    def check_patients(self, num_patients: int) -> None:
        """UserError where there are too few."""
        if num_patients < (least := self.least_patients):
            about = f"alpha={self.alpha:g}" + (f", delta={self.delta:g}" if self.method == "rcps" else "")
            remedy = "calibrate on more (root=, see docs/evaluation.md)" + (
                "" if self.method == "crc" else ", use interval.method=crc"
            )
            if level := self.least_alpha(num_patients):
                remedy += f", or give interval.alpha={level:g} or more"
            raise UserError(
                f"uncertainty=calibrate: {plural(num_patients, 'patient')}; {self.method} at {about} needs {least}, "
                f"since with fewer even intervals that miss nothing prove no coverage; {remedy}"
            )

    def least_alpha(self, num_patients: int) -> float | None:
        """The smallest alpha, in whole per cent, at which so many patients are enough; None: none is."""
        rules = (replace(self, alpha=percent / 100) for percent in range(1, 100))
        return next((rule.alpha for rule in rules if rule.accepts(np.zeros(1), num_patients)[0]), None)

    def smallest_scale(self, losses: Float[np.ndarray, "patients scales"]) -> float | None:
        """The smallest of `SCALES` that is accepted, from each patient's `loss_curve`; None: none is."""
        good = self.accepts(losses.mean(0), len(losses))
        return float(SCALES[np.argmax(good)]) if good.any() else None


def hoeffding_bentkus(risk: Float[np.ndarray, " n"], num_patients: int, alpha: float) -> Float[np.ndarray, " n"]:
    """The p-value of "the risk is above alpha" for a mean loss ``risk`` of losses in [0, 1] (RCPS, Sec. 3.1)."""
    low = np.minimum(risk, alpha)
    divergence = xlogy(low, low / alpha) + xlogy(1 - low, (1 - low) / (1 - alpha))
    bentkus = np.e * binom.cdf(np.ceil(num_patients * risk - _EPS), num_patients, alpha)
    return np.minimum(np.exp(-num_patients * divergence), bentkus)


def loss_curve(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " scales"]:
    """Share of ``scores`` (|truth - mean| / (std + floor)) above each of `SCALES`."""
    bins = np.bincount(np.searchsorted(SCALES, scores), minlength=len(SCALES) + 1)
    return 1 - np.cumsum(bins)[:-1] / len(scores)


def hashed(patient: str) -> str:
    """SHA-256 of a patient's id."""
    return hashlib.sha256(patient.encode()).hexdigest()


def content_of(case: Any) -> str:
    """SHA-256 of a prepared case's scan, the same in each folder it was prepared into; else of its volume.npy."""
    own = (read_case(case.path.parents[1], case.case_id) or {}).get("content_sha256")
    return own if isinstance(own, str) and own else sha256_of(case.path / "volume.npy")


@dataclass(frozen=True)
class Calibration:
    """Scales that were chosen on ``patients``, and all that they depend on: the content of calibration.json.

    scales, num_patients: by quantity ("voxels", "bone_volume", "vertebra_height"). model: step, weights and SHA-256 of
    the weights. sampling, precision: of the draws. dataset, split, seed: of the calibration. The file may be passed on,
    so it names no patient and no folder: data, patients, contents are SHA-256 of the prepared folder's manifest.csv,
    of the patients' ids and of their scans, see `content_of`.
    """

    rule: Rule
    scales: Mapping[str, Positive]
    num_patients: Mapping[str, Count]
    num_samples: Count
    sampling: Mapping[str, Any]
    model: Mapping[str, Any]
    dataset: str
    data: str
    split: str
    patients: list[str]
    contents: list[str]
    seed: Seed
    precision: Precision
    format: Annotated[int, Range(FORMAT, FORMAT)] = FORMAT

    @classmethod
    def load(cls, path: Path) -> "Calibration | None":
        """The file's content, None where there is no file. UserError: it is damaged."""
        if not path.is_file():
            return None
        try:
            return read(cls, json.loads(path.read_text(encoding="utf-8")))
        except (UserError, ValueError, TypeError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path}: not a calibration ({reason}); {_AGAIN}, or delete the file") from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    def misfit(
        self, num_samples: int, sampling: Mapping[str, Any], model: Mapping[str, Any], precision: str
    ) -> str | None:
        """The reason why the scales do not hold for these draws, in one line; None where they do."""
        if dict(model) != dict(self.model):
            return f"calibrated for other weights (step {self.model.get('step')}); {_AGAIN}"
        now = {**sampling, "num_samples": num_samples, "precision": precision}
        then = {**self.sampling, "num_samples": self.num_samples, "precision": self.precision}
        changed = [f"{key}={then.get(key)}" for key in {**then, **now} if then.get(key) != now.get(key)]
        return f"calibrated with {', '.join(changed)}; give the same, or {_AGAIN}" if changed else None

    def check_others(self, patients: Sequence[str], contents: Sequence[str], data: str, dataset: str) -> None:
        """UserError where cases to score are among those calibrated on: by scan, and in one data set by patient.

        patients, contents: of each case, the id and `content_of`.
        """
        same, known = data == self.data or dataset == self.dataset, set(self.patients)
        both = {
            patient
            for patient, content in zip(patients, contents, strict=True)
            if content in self.contents or (same and hashed(patient) in known)
        }
        if both:
            raise UserError(
                f"uncertainty: {len(both)} of the patients to score were calibrated on ({min(both)}, ...), so their "
                "coverage would say nothing; score another split, or calibrate on other patients"
            )

    def about(self) -> dict[str, Any]:
        """For metrics.json and reconstruct.json."""
        own = {key: getattr(self, key) for key in ("scales", "num_patients", "dataset", "split", "seed")}
        return asdict(self.rule) | {key: dict(v) if isinstance(v, Mapping) else v for key, v in own.items()}


_AGAIN = f"calibrate again ({command('evaluate')} ckpt=... uncertainty=calibrate)"
