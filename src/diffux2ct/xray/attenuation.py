"""From HU to X-ray attenuation: plastimatch's rule, linear water, and a spectrum through tissue, bone and metal.

A model maps HU to the volumes to project (``materials``) and their line integrals to the detector's image
(``line_integral``). Linear models have one volume, whose line integral is the image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.errors import UserError
from diffux2ct.intensity import attenuation_from_hu
from diffux2ct.types import Volume, Xray
from diffux2ct.xray.camera import Real

# Mass attenuation coefficients in cm^2/g: Hubbell and Seltzer, NISTIR 5632 (NIST standard reference database 126):
# liquid water; cortical bone (ICRU-44); titanium, whose absorption edge (5 keV) lies below the table.
TABLE_KEV = (10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
MASS_ATTENUATION = {
    "water": (5.329, 1.673, 0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505),
    "bone": (28.51, 9.032, 4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480),
    "titanium": (110.7, 35.87, 15.85, 4.972, 2.214, 1.213, 0.7661, 0.4052, 0.2721, 0.1649),
}
DENSITY = {"water": 1.0, "bone": 1.92, "titanium": 4.54}  # g/cm^3, the same tables

# Photons per 5 keV from 10 keV up, as shares of all: tungsten anode at 12 degrees behind 3 mm of aluminium, 1 m of air,
# computed with SpekPy 2.5 (Poludniowski et al., Medical Physics 48 (2021) 3630). Mean energies 43.8, 50.1, 55.4 keV.
SPECTRA: Mapping[int, tuple[float, ...]] = {
    80: (0.0001, 0.0081, 0.0516, 0.1061, 0.1348, 0.1387, 0.1285, 0.1121, 0.0939, 0.0890, 0.0585, 0.0455, 0.0244,
         0.0088),
    100: (0.0000, 0.0049, 0.0342, 0.0756, 0.1018, 0.1100, 0.1067, 0.0977, 0.0865, 0.1203, 0.0640, 0.0666, 0.0401,
          0.0327, 0.0255, 0.0183, 0.0112, 0.0039),
    120: (0.0000, 0.0033, 0.0246, 0.0577, 0.0816, 0.0917, 0.0918, 0.0866, 0.0789, 0.1397, 0.0623, 0.0743, 0.0409,
          0.0361, 0.0313, 0.0267, 0.0223, 0.0181, 0.0140, 0.0100, 0.0060, 0.0021),
}  # fmt: skip

CT_KEV = 70.0  # effective energy of a CT scan at 120 kVp, at which HU were measured
SOFT_HU = 100.0  # densest soft tissue; above it, bone takes a growing share of the voxel
METAL_HU = (2000.0, 3000.0)  # above bone, and where a 12-bit scan ends (3071): solid titanium from there on


class AttenuationModel(ABC):
    """A rule from HU to line integrals, before and after projection. name: its key in ``ATTENUATIONS``."""

    name: str

    @abstractmethod
    def materials(self, hu: Volume) -> Float[Tensor, "b m d h w"]:
        """The maps to project, per mm of path: [B, 1, D, H, W] HU to [B, M, D, H, W]."""

    def line_integral(self, paths: Float[Tensor, "b m v u"]) -> Xray:
        """The detector's image of the maps' projections [B, M, rows, cols]: dimensionless [B, 1, rows, cols]."""
        return paths


@dataclass(frozen=True)
class PlastimatchAttenuation(AttenuationModel):
    """0.022 (1 + HU / 1000) per mm, and nothing at HU <= -800: the rule of X2CT-GAN's and the paper's X-rays."""

    name: str = "plastimatch"

    def materials(self, hu: Volume) -> Float[Tensor, "b m d h w"]:
        """Linear attenuation, mm^-1."""
        return attenuation_from_hu(hu)


@dataclass(frozen=True)
class WaterAttenuation(AttenuationModel):
    """Water's attenuation at one energy times (1 + HU / 1000), from -1000 HU up: lung and fat count in full.

    kev: photon energy. 60 gives 0.0206 per mm; plastimatch's 0.022 is water at 52 keV.
    """

    kev: Real = 60.0
    name: str = "water"

    def __post_init__(self) -> None:
        mass_attenuation("water", [self.kev])

    def materials(self, hu: Volume) -> Float[Tensor, "b m d h w"]:
        """Linear attenuation, mm^-1."""
        mu = float(mass_attenuation("water", [self.kev])[0]) / 10  # cm^-1 at 1 g/cm^3, in mm^-1
        return mu * _relative_to_water(hu)


@dataclass(frozen=True)
class TwoMaterialAttenuation(AttenuationModel):
    """A spectrum through soft tissue and bone, and titanium where a scan's scale ends: beam hardening.

    Every voxel is split by its HU so that at ``ct_kev``, where HU were measured, the parts together attenuate as much
    as the HU say: water up to 100 HU, from there a mixture with cortical bone (1.92 g/cm^3). From 2000 to 3000 HU it
    turns into solid titanium: a scan's scale ends near 3071 HU, far below the nearly 12 000 HU of titanium. Then

        effective line integral = -ln sum_k w_k exp(-sum_m (mu/rho)_m(E_k) A_m),   A_m areal density of material m

    with weights w_k of an energy-integrating detector: photons times energy. Low energies are absorbed first, so that
    thick bone attenuates less than its thickness says.

    Args:
        kvp: tube voltage, a key of ``SPECTRA``: 80 (lumbar spine), 100, 120 (chest).
        ct_kev: effective energy of the CT scan.
        spectrum: (keV, photons) pairs instead of the tube's, in any scale; one pair is a monochromatic beam.

    UserError for another voltage, and for an energy outside 10-150 keV.
    """

    kvp: int = 80
    ct_kev: Real = CT_KEV
    spectrum: Sequence[tuple[Real, Real]] | None = None
    name: str = "two_material"

    def __post_init__(self) -> None:
        if self.spectrum is None and self.kvp not in SPECTRA:
            raise UserError(f"kvp={self.kvp}: no such spectrum; use {', '.join(map(str, SPECTRA))}")
        mass_attenuation("water", [self.ct_kev])
        self.beam()

    def beam(self) -> tuple[np.ndarray, np.ndarray]:
        """Energies in keV and the detector's weights w_k, which sum to 1."""
        if self.spectrum is None:
            photons = np.array(SPECTRA[self.kvp])
            kev = 12.5 + 5.0 * np.arange(photons.size)
        else:
            kev, photons = (np.array(values, dtype=np.float64) for values in zip(*self.spectrum, strict=True))
        mass_attenuation("water", kev)
        weights = photons * kev
        if not (weights >= 0).all() or not weights.sum() > 0:
            raise UserError("spectrum: photons must not be negative, nor all zero")
        return kev[weights > 0], weights[weights > 0] / weights.sum()

    def materials(self, hu: Volume) -> Float[Tensor, "b m d h w"]:
        """Areal densities per mm of path of water, bone and titanium, g/cm^2/mm."""
        water, bone = (float(mass_attenuation(name, [self.ct_kev])[0]) for name in ("water", "bone"))
        soft_end, bone_start = (1 + SOFT_HU / 1000, DENSITY["bone"] * bone / water)  # both relative to water's mu
        relative = _relative_to_water(hu)
        share = ((relative - soft_end) / (bone_start - soft_end)).clamp(min=0)
        rho_water = torch.where(share > 0, soft_end * (1 - share).clamp(min=0), relative)
        # Beyond pure cortical bone, denser bone.
        rho_bone = DENSITY["bone"] * torch.where(share > 1, relative / bone_start, share)
        metal = ((hu - METAL_HU[0]) / (METAL_HU[1] - METAL_HU[0])).clamp(0, 1)
        densities = ((1 - metal) * rho_water, (1 - metal) * rho_bone, metal * DENSITY["titanium"])
        return torch.cat(densities, 1) / 10  # g/cm^3 is g/cm^2 a cm

    def line_integral(self, paths: Float[Tensor, "b m v u"]) -> Xray:
        """The effective line integral of areal densities, g/cm^2."""
        kev, weights = self.beam()
        table = np.stack([mass_attenuation(name, kev) for name in ("water", "bone", "titanium")])
        mu, log_weights = (
            torch.as_tensor(values, dtype=paths.dtype, device=paths.device) for values in (table, np.log(weights))
        )
        depth = torch.einsum("mk,bmvu->bkvu", mu, paths)
        return -torch.logsumexp(log_weights[:, None, None] - depth, dim=1, keepdim=True)


ATTENUATIONS: Mapping[str, Callable[..., AttenuationModel]] = {
    "plastimatch": PlastimatchAttenuation,
    "water": WaterAttenuation,
    "two_material": TwoMaterialAttenuation,
}


def attenuation_model(model: str | AttenuationModel) -> AttenuationModel:
    """The model itself, or the one of that name with its defaults. UserError for an unknown name."""
    if not isinstance(model, str):
        return model
    if model not in ATTENUATIONS:
        raise UserError(f"attenuation {model!r} is unknown; use {', '.join(ATTENUATIONS)}")
    return ATTENUATIONS[model]()


def mass_attenuation(material: str, kev: Sequence[Real] | np.ndarray) -> np.ndarray:
    """Mass attenuation coefficients in cm^2/g, interpolated log-log as the table's source advises.

    UserError for an energy outside 10-150 keV.
    """
    energies = np.asarray(kev, dtype=np.float64)
    if not ((energies >= TABLE_KEV[0]) & (energies <= TABLE_KEV[-1])).all():
        raise UserError(f"photon energy {list(energies)} keV: the table reaches from 10 to 150 keV")
    return np.exp(np.interp(np.log(energies), np.log(TABLE_KEV), np.log(MASS_ATTENUATION[material])))


def _relative_to_water(hu: Tensor) -> Tensor:
    return (1 + hu / 1000).clamp(min=0)
