"""What the report must know of a metric: its name, unit, direction and group, and how a value is written."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffux2ct.evaluation.metric_info import metric_info

_GROUPS = (
    (("mae",), "Error in HU"),
    (("lpips", "fid", "fd_", "kd_"), "Perceptual"),
    (("dice", "hd95"), "Bones"),
    (("implant",), "Implants"),
    (("vertebra",), "Vertebrae"),
    (("xray",), "X-ray consistency"),
)
_DIGITS = {"dB": 2, "HU": 1, "mm": 2, "deg": 1}


@dataclass(frozen=True)
class Shown:
    """A metric as the report shows it."""

    key: str
    title: str
    unit: str
    larger_is_better: bool | None
    about: str

    @property
    def group(self) -> str:
        """Heading under which it stands."""
        return next((name for starts, name in _GROUPS if self.key.startswith(starts)), "Volume and slices")

    @property
    def digits(self) -> int:
        """Decimals that are worth reading."""
        return _DIGITS.get(self.unit, 3)

    @property
    def direction(self) -> str:
        """Which way is better, in words; nothing where that is not known."""
        if self.larger_is_better is None:
            return ""
        return "larger is better" if self.larger_is_better else "smaller is better"

    def text(self, value: float, sign: bool = False) -> str:
        """A value with its unit, rounded: "20.50 dB"."""
        number = f"{value:{'+' if sign else ''}.{self.digits}f}"
        return f"{number} {self.unit}" if self.unit else number

    def side(self, difference: float) -> str:
        """What a difference to the floor means: "better", "worse" or, of a metric without direction, nothing."""
        if self.larger_is_better is None or difference == 0:
            return ""
        return "better" if (difference > 0) == self.larger_is_better else "worse"


def shown(key: str) -> Shown:
    """What is known of a metric, by its key in metrics.json; a stranger keeps its key and has no direction."""
    info = metric_info(key)
    if info is None:
        return Shown(key, key, "", None, "")
    return Shown(key, info.title, info.unit, info.larger_is_better, info.about)


def number(value: Any) -> float | None:
    """A finite number, or None for what is absent: None, an empty cell, NaN."""
    if value is None or value == "":
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def values(rows: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[str, float]]:
    """(case, value) of the cases that have this metric."""
    for row in rows:
        value = number(row.get(key))
        if value is not None:
            yield str(row["case_id"]), value
