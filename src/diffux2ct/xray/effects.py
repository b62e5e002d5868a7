"""Effects of a real exposure on raw line integrals: beam quality, scatter, noise, a detector's limits, processing.

``XrayEffects`` is one exposure, ``XrayRandomization`` the ranges that training draws exposures from. Order, as in the
machine: beam quality -> exp(-p) -> scatter -> noise and detector floor -> -log -> processing. Nothing draws from the
global generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from diffux2ct.arguments import unknown_key
from diffux2ct.errors import UserError
from diffux2ct.types import Xray
from diffux2ct.xray.camera import Real, finite

Range = tuple[Real, Real]


@dataclass(frozen=True)
class XrayEffects:
    """One exposure. The defaults change nothing.

    photons: per pixel in the unattenuated beam; None: no noise. electronic_noise: standard deviation of the readout,
        in photons; needs ``photons``.
    scatter_to_primary: scattered over primary intensity, averaged over the patient's shadow. scatter_width: standard
        deviation of the scatter's blur, as a fraction of the image's longer side.
    contrast: factor on the line integrals; below 1 for a harder beam than that of the attenuation model.
    gamma: exponent of the line integral over the image's largest: an unknown grey-level curve.
    saturation: line integral above which the detector sees only darkness; None: no limit.

    Raises UserError for a value that is not positive.
    """

    photons: Real | None = None
    electronic_noise: Real = 0.0
    scatter_to_primary: Real = 0.0
    scatter_width: Real = 0.1
    contrast: Real = 1.0
    gamma: Real = 1.0
    saturation: Real | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            may_be_zero = field.name in ("electronic_noise", "scatter_to_primary")
            if value is None or not finite(value) or not (value > 0 or (may_be_zero and value == 0)):
                raise UserError(f"X-ray effect {field.name}={value}: must be positive")
        if self.electronic_noise and self.photons is None:
            raise UserError("X-ray effect electronic_noise is counted in photons; give photons too")

    def __call__(self, line_integrals: Xray, generator: torch.Generator | None = None) -> Xray:
        """Line integrals as this exposure shows them: [B, 1, V, U] to the same shape, at least 0, float32.

        generator: on the images' device; needed where there is noise. Without noise, differentiable.
        """
        images = line_integrals.float() * self.contrast
        if self.scatter_to_primary > 0 or self.photons is not None or self.saturation is not None:
            intensity = torch.exp(-images)
            if self.scatter_to_primary:
                intensity = add_scatter(intensity, self.scatter_to_primary, self.scatter_width)
            if self.photons is not None:
                intensity = add_noise(intensity, self.photons, self.electronic_noise, generator)
            floor = exp(-self.saturation) if self.saturation is not None else torch.finfo(torch.float32).tiny
            images = -intensity.clamp(min=floor).log()
        images = images.clamp(min=0)
        if self.gamma == 1:
            return images
        peak = images.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return peak * (images / peak) ** self.gamma


def add_scatter(intensity: Xray, scatter_to_primary: Real, width: Real) -> Xray:
    """Intensity with scattered radiation: a wide Gaussian blur of -I log I, where scatter arises.

    The source term is the convolution model of Ohnesorge et al., Eur. Radiol. 9:563 (1999): none where the beam meets
    nothing, none where nothing comes through. It is scaled so that its mean over the patient's shadow (pixels weighted
    by the absorbed share of the beam, 1 - I) is ``scatter_to_primary`` times the primary's.

    intensity: [B, 1, V, U], 1 in the open beam. width: standard deviation, as a fraction of the longer side.
    """
    source = -intensity * intensity.clamp(min=torch.finfo(intensity.dtype).tiny).log()
    scatter = _blur(source.clamp(min=0), width * max(intensity.shape[-2:]))
    shadow = (1 - intensity).clamp(min=0)
    primary = (shadow * intensity).sum(dim=(-2, -1), keepdim=True)
    arriving = (shadow * scatter).sum(dim=(-2, -1), keepdim=True)
    scale = scatter_to_primary * primary / torch.where(arriving > 0, arriving, torch.ones_like(arriving))
    return intensity + scale * scatter


def add_noise(intensity: Xray, photons: Real, electronic_noise: Real, generator: torch.Generator | None) -> Xray:
    """Intensity counted by a detector: Poisson in the photons, Gaussian in the readout; one photon at least.

    intensity: [B, 1, V, U], 1 in the open beam. photons: per pixel in the open beam. electronic_noise: standard
    deviation in photons. generator: on the images' device.
    """
    if generator is None:
        raise ValueError("noise needs a generator: nothing here draws from the global one")
    counts = torch.poisson(intensity.detach() * photons, generator)
    if electronic_noise:
        counts = counts + electronic_noise * torch.randn(
            counts.shape, generator=generator, device=counts.device, dtype=counts.dtype
        )
    return counts.clamp(min=1) / photons


@dataclass(frozen=True)
class XrayRandomization:
    """Ranges of exposures, for training on X-rays that are more varied than simulated ones.

    Each effect is present with ``probability``, and then uniform in its range (photons: uniform in the logarithm); a
    range that is None leaves its effect out. The defaults, for images of 1-4 mm pixels of a torso:

    - photons 5e4 to 5e6 in the open beam: 9 mm^2 of panel (a 2 mm voxel magnified by 1.5), 30 174 photons/mm^2/uGy
      (IEC 62220-1, RQA5) and 20 to 50 nGy behind a torso that lets e^-2 to e^-4 through, as a fluoroscopy frame
      has, give 4e4 to 7e5; a radiograph (2.5 uGy) has fifty times more, and then shows no noise at this size.
    - electronic_noise 0 to 10 photons: about 2 a native pixel of an indirect panel, times the root of those binned.
    - scatter_to_primary 0 to 1: a torso scatters 3 to 5, of which an anti-scatter grid or an air gap leaves less
      than 1 (Bushberg et al., The Essential Physics of Medical Imaging, ch. 7).
    - scatter_width 0.05 to 0.2 of the image: 2 to 9 cm on a 44 cm panel, kernels as in Ohnesorge et al. (1999).
    - contrast 0.8 to 1.05: water's 0.0184/mm at 80 keV to 0.0227/mm at 50 keV (NIST XCOM) over the 0.022/mm of
      the X-rays, and a little more.
    - gamma 0.7 to 1.4: a vendor's grey-level curve, which is not published; our choice.
    - saturation 7 to 9.7: a 14-bit detector ends at ln 2^14 = 9.7, a 12-bit one at 8.3, less offset and reserve.

    Raises UserError for a range that falls, or whose lowest value no exposure can have.
    """

    photons: Range | None = (5e4, 5e6)
    electronic_noise: Range | None = (0.0, 10.0)
    scatter_to_primary: Range | None = (0.0, 1.0)
    scatter_width: Range | None = (0.05, 0.2)
    contrast: Range | None = (0.8, 1.05)
    gamma: Range | None = (0.7, 1.4)
    saturation: Range | None = (7.0, 9.7)
    probability: Real = 0.8

    def __post_init__(self) -> None:
        if not finite(self.probability) or not 0 <= self.probability <= 1:
            raise UserError(f"randomize.probability={self.probability}: must lie in [0, 1]")
        for name, limits in self._ranges().items():
            if not isinstance(limits, Sequence) or len(limits) != 2 or not finite(*limits) or limits[0] > limits[1]:
                shown = list(limits) if isinstance(limits, tuple) else limits
                raise UserError(f"randomize.{name}={shown}: give [lowest, highest], or null")
            XrayEffects(**{"photons": 1.0, name: limits[0]})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "XrayRandomization":
        """From plain values, ranges as [lowest, highest] or null; UserError for an unknown key or a bad value."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(unknown_key(f"dataset.randomize.{name}", [f"dataset.randomize.{key}" for key in known]))
        return cls(**{name: _plain(name, value) for name, value in values.items()})

    def draw(self, generator: torch.Generator) -> XrayEffects:
        """One exposure; the number of draws is always the same. generator: on the CPU."""
        values = {}
        for name, (low, high) in self._ranges().items():
            present, at = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            if present < self.probability:
                values[name] = exp(log(low) + at * log(high / low)) if name == "photons" else low + at * (high - low)
        if "photons" not in values:
            values.pop("electronic_noise", None)
        return XrayEffects(**values)

    def _ranges(self) -> dict[str, Range]:
        ranges = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in ranges.items() if name != "probability" and value is not None}


def _plain(name: str, value: Any) -> Any:
    """A range as floats, or None; the probability as a float."""
    try:
        if name == "probability":
            return float(value)
        if value is None:
            return None
        low, high = value
        return float(low), float(high)
    except (TypeError, ValueError):
        raise UserError(f"randomize.{name}={value}: give [lowest, highest], or null") from None


def _blur(images: Tensor, sigma: Real) -> Tensor:
    """Separable Gaussian blur of [B, 1, V, U], standard deviation in pixels; beyond the border lies its mirror."""
    for axis in (-2, -1):
        length = images.shape[axis]
        position = torch.arange(length, dtype=images.dtype, device=images.device)
        distance = position[:, None] - torch.cat((-1 - position.flip(0), position, 2 * length - 1 - position.flip(0)))
        weight = torch.exp(-0.5 * (distance / sigma) ** 2)
        weight = weight / weight.sum(1, keepdim=True)
        before, within, after = weight.unflatten(1, (3, length)).unbind(1)
        matrix = within + before.flip(1) + after.flip(1)
        images = matrix @ images if axis == -2 else images @ matrix.T
    return images
