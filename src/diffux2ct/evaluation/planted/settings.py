"""Settings of the planted objects, light enough for the command's --help."""

from dataclasses import dataclass, field
from typing import Annotated

from diffux2ct.arguments import Positive, Range, Seed

NAME = "planted"
"""The family's name."""


@dataclass(frozen=True)
class Planting:
    """Objects that are put into each case.

    diameters: mm, of the spheres, one volume each; none leaves the screw alone. contrast: HU that a sphere adds.
    displacement: mm from the screw's first position to its second. seed: of the positions, with the case's name.
    """

    diameters: list[Annotated[float, Range(1, 200)]] = field(default_factory=lambda: [10.0, 16.0, 24.0, 32.0])
    contrast: Annotated[float, Range(1, 1000)] = 50.0
    displacement: Positive = 8.0
    seed: Seed = 0
