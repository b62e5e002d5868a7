"""Effects of a real exposure on raw line integrals: beam quality, scatter, noise, a detector's limits, processing.

``XrayEffects`` is one exposure, ``XrayRandomization`` the ranges that training draws exposures from. Order, as in the
machine: beam quality -> exp(-p) -> scatter -> noise and detector floor -> -log -> grey-level curve -> local contrast ->
sharpening -> black border of the collimator. Nothing draws from the global generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import exp, log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffux2ct.arguments import unknown_key
from diffux2ct.errors import UserError
from diffux2ct.seeding import CPU, seeded_generator
from diffux2ct.types import Xray
from diffux2ct.xray.camera import Real, finite
from diffux2ct.xray.pose import drawing_order

Range = tuple[Real, Real]
_SALT = 7  # of a sample's exposure: the model draws its noise from the same seed


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
    clahe: clip limit of `equalize_locally`, the largest share of a tile's pixels in one of 256 grey levels; 0: none.
    sharpen: factor of the detail that `sharpen` adds. sharpen_width: standard deviation of the blur that separates
        detail, as a fraction of the image's longer side.
    collimation: fractions of the image that are black at its first rows, last rows, first columns, last columns.

    Raises UserError for a value that is not positive, and for a border that leaves nothing.
    """

    photons: Real | None = None
    electronic_noise: Real = 0.0
    scatter_to_primary: Real = 0.0
    scatter_width: Real = 0.1
    contrast: Real = 1.0
    gamma: Real = 1.0
    saturation: Real | None = None
    clahe: Real = 0.0
    sharpen: Real = 0.0
    sharpen_width: Real = 0.015
    collimation: tuple[Real, Real, Real, Real] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        border = self.collimation
        if (
            not isinstance(border, Sequence)
            or len(border) != 4
            or not finite(*border)
            or min(border) < 0
            or max(sum(border[:2]), sum(border[2:])) >= 1
        ):
            raise UserError(
                f"X-ray effect collimation={border}: give four fractions from 0, of which those of "
                "opposite sides sum up to less than 1"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if (value is None and field.default is None) or field.name == "collimation":
                continue
            may_be_zero = field.name in ("electronic_noise", "scatter_to_primary", "clahe", "sharpen")
            if value is None or not finite(value) or not (value > 0 or (may_be_zero and value == 0)):
                raise UserError(f"X-ray effect {field.name}={value}: must be positive")
        if self.electronic_noise and self.photons is None:
            raise UserError("X-ray effect electronic_noise is counted in photons; give photons too")

    def __call__(self, line_integrals: Xray, generator: torch.Generator | None = None) -> Xray:
        """Line integrals as this exposure shows them: [B, 1, V, U] to the same shape, at least 0, float32.

        generator: on the images' device; needed where there is noise. Without noise and clahe, differentiable.
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
        return self._process(images.clamp(min=0))

    def _process(self, images: Xray) -> Xray:
        if self.gamma != 1:
            peak = images.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            images = peak * (images / peak) ** self.gamma
        if self.clahe:
            images = equalize_locally(images, self.clahe)
        if self.sharpen:
            images = sharpen(images, self.sharpen, self.sharpen_width)
        return collimate(images, self.collimation) if any(self.collimation) else images


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


def equalize_locally(images: Xray, clip_limit: Real, tile: Real = 0.25) -> Xray:
    """CLAHE (Zuiderveld 1994, as in scikit-image): each tile's histogram flattened, as far as the limit lets it.

    images: [B, 1, V, U]; each keeps its least and largest value. clip_limit: the largest share of a tile's pixels in
    one of 256 grey levels. tile: its side, as a fraction of the image's, of at least 16 pixels: in fewer than 256 the
    limits of `XrayRandomization` would be the same, since a grey level keeps one pixel at least. Has no gradient.
    """
    from skimage.exposure import equalize_adapthist

    low, high = images.aminmax(dim=-1)
    low, high = low.amin(-1)[..., None, None], high.amax(-1)[..., None, None]
    unit = (images - low) / torch.where(high > low, high - low, torch.ones_like(high))
    kernel = [max(min(16, side), round(side * tile)) for side in images.shape[-2:]]
    flat = [equalize_adapthist(image, kernel, clip_limit) for image in unit[:, 0].detach().double().cpu().numpy()]
    equal = torch.from_numpy(np.stack(flat)).to(images.device, images.dtype)[:, None]
    return torch.where(high > low, low + equal * (high - low), images)


def sharpen(images: Xray, amount: Real, width: Real) -> Xray:
    """Unsharp mask: ``amount`` times what a Gaussian blur takes away is added; at least 0. Edges overshoot.

    images: [B, 1, V, U]. width: the blur's standard deviation, as a fraction of the longer side.
    """
    detail = images - _blur(images, width * max(images.shape[-2:]))
    return (images + amount * detail).clamp(min=0)


def collimate(images: Xray, border: Sequence[Real]) -> Xray:
    """Images that are 0, as air is, outside a rectangle: a collimated radiograph as it is shown, with a black border.

    images: [B, 1, V, U]. border: fractions of the image at its first rows, last rows, first columns, last columns.
    """
    rows, cols = images.shape[-2:]
    first, last, left, right = (
        round(share * side) for share, side in zip(border, (rows, rows, cols, cols), strict=True)
    )
    open_field = torch.zeros_like(images)
    open_field[..., first : rows - last, left : cols - right] = 1
    return images * open_field


@dataclass(frozen=True)
class XrayRandomization:
    """Ranges of exposures, for training on X-rays that are more varied than simulated ones.

    Each effect is present with ``probability``, or with its own (clahe, sharpen, collimation), and then uniform in its
    range (photons: uniform in the logarithm); a range that is None leaves its effect out. The defaults, for images of
    1-4 mm pixels of a torso:

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
    - clahe 0.004 to 0.04: 1 to 10 times the share that each of 256 grey levels has in a flat histogram, as xvr
      (Gopalakrishnan et al., 2025) draws it.
    - sharpen 0.3 to 1.5, sharpen_width 0.01 to 0.03 of the image: localizers and radiographs are edge-enhanced, by
      kernels that are not published; our choice.
    - collimation 0 to 0.2 of the image on each side, by itself; present as often as xvr's, in a third.

    Raises UserError for a range that falls, or whose lowest value no exposure can have.
    """

    photons: Range | None = (5e4, 5e6)
    electronic_noise: Range | None = (0.0, 10.0)
    scatter_to_primary: Range | None = (0.0, 1.0)
    scatter_width: Range | None = (0.05, 0.2)
    contrast: Range | None = (0.8, 1.05)
    gamma: Range | None = (0.7, 1.4)
    saturation: Range | None = (7.0, 9.7)
    clahe: Range | None = (0.004, 0.04)
    sharpen: Range | None = (0.3, 1.5)
    sharpen_width: Range | None = (0.01, 0.03)
    collimation: Range | None = (0.0, 0.2)
    probability: Real = 0.8
    clahe_probability: Real = 0.33
    sharpen_probability: Real = 0.33
    collimation_probability: Real = 0.33

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name.endswith("probability")):
            if not finite(value := getattr(self, name)) or not 0 <= value <= 1:
                raise UserError(f"randomize.{name}={value}: must lie in [0, 1]")
        for name, limits in self._ranges().items():
            if not isinstance(limits, Sequence) or len(limits) != 2 or not finite(*limits) or limits[0] > limits[1]:
                shown = list(limits) if isinstance(limits, tuple) else limits
                raise UserError(f"randomize.{name}={shown}: give [lowest, highest], or null")
            # The least of an effect, the most of a border.
            extreme: Any = (limits[1],) * 4 if name == "collimation" else limits[0]
            XrayEffects(**{"photons": 1.0, name: extreme})

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
            sides = 4 if name == "collimation" else 1
            present, *at = torch.rand(1 + sides, generator=generator, dtype=torch.float64).tolist()
            if present < getattr(self, f"{name}_probability", self.probability):
                drawn = [
                    exp(log(low) + a * log(high / low)) if name == "photons" else low + a * (high - low) for a in at
                ]
                values[name] = tuple(drawn) if sides > 1 else drawn[0]
        if "photons" not in values:
            values.pop("electronic_noise", None)
        return XrayEffects(**values)

    def expose(self, pair: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Line integrals [V, U] of each view, on the CPU, in an exposure of its own; ``seed`` alone fixes them."""
        stream = seeded_generator(CPU, seed, _SALT)
        return {view: self.draw(stream)(pair[view][None, None], stream)[0, 0] for view in drawing_order(pair)}

    def _ranges(self) -> dict[str, Range]:
        ranges = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in ranges.items() if "probability" not in name and value is not None}


def _plain(name: str, value: Any) -> Any:
    """A range as floats, or None; a probability as a float."""
    try:
        if "probability" in name:
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
