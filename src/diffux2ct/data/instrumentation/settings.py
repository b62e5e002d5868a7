"""Settings of virtual instrumentation: the keys of ``dataset.prepare.instrument``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from diffux2ct.errors import UserError

MAX_LEVELS = 4  # L1 to L5 are four motion segments
_PAIRS = ("levels", "diameter", "length")


@dataclass(frozen=True)
class InstrumentSettings:
    """Settings of the implants. Ranges are (lowest, highest).

    probability: share of the scans that get implants. levels: motion segments as surgeons count them, so that 1 level
    is two vertebrae and 4 levels are L1 to L5. bilateral: share with both sides instrumented.
    diameter, length: of the screws, mm, in steps of 0.5 and 5; each is as large as its pedicle and body allow.
    rod_diameter: mm. metal_hu: titanium alloy on an unclipped scale. clip_hu: where the scanner's scale ends.
    artefact: streaks and dark bands in the slices with metal; slow.
    UserError for values out of range.
    """

    probability: float | int = 1.0
    levels: tuple[int, int] = (1, MAX_LEVELS)
    bilateral: float | int = 0.85
    diameter: tuple[float | int, float | int] = (4.5, 7.5)
    length: tuple[float | int, float | int] = (35.0, 55.0)
    rod_diameter: float | int = 5.5
    metal_hu: float | int = 8000.0
    clip_hu: float | int = 3071.0
    artefact: bool = False

    def __post_init__(self) -> None:
        for name in ("probability", "bilateral"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        low, high = self.levels
        _check("levels", list(self.levels), 1 <= low <= high <= MAX_LEVELS, f"[lowest, highest] in 1..{MAX_LEVELS}")
        for name, limit in (("diameter", 12), ("length", 80)):
            low, high = getattr(self, name)
            _check(name, [low, high], 0 < low <= high <= limit, f"[lowest, highest] in mm, at most {limit}")
        _check("rod_diameter", self.rod_diameter, 2 <= self.rod_diameter <= 8, "2 to 8 mm")
        _check("clip_hu", self.clip_hu, 1000 <= self.clip_hu <= 32767, "1000 to 32767 HU")
        _check("metal_hu", self.metal_hu, self.metal_hu >= 1000, "1000 HU or more")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InstrumentSettings":
        """Settings from a config's mapping; a missing key keeps its default. UserError for an unknown key."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UserError(f"dataset.prepare.instrument: unknown {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**{name: _plain(name, value) for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for case.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _plain(name: str, value: Any) -> Any:
    if name == "artefact":
        _check(name, value, isinstance(value, bool), "true or false")
        return value
    numbers = list(value) if name in _PAIRS and isinstance(value, list | tuple) else [value]
    kind = int if name == "levels" else int | float
    right = all(isinstance(n, kind) and not isinstance(n, bool) for n in numbers)
    if name in _PAIRS:
        _check(name, value, right and len(numbers) == 2, "[lowest, highest]")
        return tuple(numbers)
    _check(name, value, right, "a number")
    return value


def _check(name: str, value: Any, right: bool, remedy: str) -> None:
    if not right:
        raise UserError(f"dataset.prepare.instrument.{name}={value}: give {remedy}")
