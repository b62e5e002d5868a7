import numpy as np
import pytest
import torch

from diffux2ct.errors import UserError
from diffux2ct.xray.attenuation import (
    ATTENUATIONS,
    SPECTRA,
    AttenuationModel,
    PlastimatchAttenuation,
    TwoMaterialAttenuation,
    WaterAttenuation,
    attenuation_model,
    mass_attenuation,
)


def through(model, hu, mm):
    """Line integral of ``mm`` of each HU, one after another along one ray, as the detector sees it."""
    maps = sum(
        model.materials(torch.full((1, 1, 1, 1, 1), float(h), dtype=torch.float64)) * d
        for h, d in zip(hu, mm, strict=True)
    )
    return float(model.line_integral(maps[:, :, 0]))


def test_coefficients_are_nists_and_interpolated_between():
    # NIST XCOM for energies that the table lacks: water and titanium at 70 keV, cortical bone (ICRU-44) at 45 keV.
    assert mass_attenuation("water", [60.0])[0] == pytest.approx(0.2059)
    assert mass_attenuation("water", [70.0])[0] == pytest.approx(0.1929, rel=1e-2)
    assert mass_attenuation("titanium", [70.0])[0] == pytest.approx(0.5391, rel=2e-2)
    assert mass_attenuation("bone", [45.0])[0] == pytest.approx(0.518, rel=2e-2)
    with pytest.raises(UserError, match="from 10 to 150 keV"):
        mass_attenuation("bone", [5.0])


def test_plastimatch_forgets_thin_tissue_and_water_does_not():
    hu = torch.tensor([-1100.0, -1000.0, -850.0, 0.0, 1000.0])[None, None, None, None]
    plastimatch, water = (model.materials(hu).flatten() for model in (PlastimatchAttenuation(), WaterAttenuation(60)))
    torch.testing.assert_close(plastimatch, torch.tensor([0, 0, 0, 0.022, 0.044]))
    torch.testing.assert_close(water, 0.02059 * torch.tensor([0, 0, 0.15, 1, 2]))
    paths = torch.rand(2, 1, 3, 4)
    for model in (PlastimatchAttenuation(), WaterAttenuation()):
        assert model.line_integral(paths) is paths


@pytest.mark.parametrize("kev", [50.0, 70.0, 100.0])
def test_one_energy_is_the_linear_model(kev):
    """Where HU were measured at the beam's own energy, the materials together attenuate as the HU say: to 2000 HU."""
    hu = torch.linspace(-1050, 2000, 200, dtype=torch.float64)[None, None, None, None]
    model = TwoMaterialAttenuation(ct_kev=kev, spectrum=[(kev, 3.0)])
    effective = model.line_integral(model.materials(hu)[:, :, 0] * 50.0)
    expected = WaterAttenuation(kev).materials(hu)[:, :, 0] * 50.0
    torch.testing.assert_close(effective, expected, rtol=0, atol=1e-9)


def test_the_parts_of_a_voxel_change_without_a_jump():
    hu = torch.linspace(-1000, 3200, 42001)[None, None, None, None]
    water, bone, titanium = TwoMaterialAttenuation().materials(hu)[0, :, 0, 0]
    for density in (water, bone, titanium):
        assert density.min() >= 0
        assert density.diff().abs().max() < 1e-3  # g/cm^2/mm per 0.1 HU: a jump would be 0.1 and more
    at = {h: i for i, h in enumerate(hu.flatten().round().int().tolist())}
    assert (bone[at[90]], titanium[at[1990]]) == (0, 0)
    assert water[at[1700]] == 0
    assert float(bone[at[1900]]) == pytest.approx(0.215, rel=0.02)  # a little denser than cortical bone
    assert (float(water[at[3100]]), float(bone[at[3100]])) == (0, 0)
    assert float(titanium[at[3100]]) == pytest.approx(0.454)


@pytest.mark.parametrize("kvp", sorted(SPECTRA))
def test_thick_bone_hardens_the_beam(kvp):
    model = TwoMaterialAttenuation(kvp=kvp)
    for hu in (0.0, 1000.0):
        thin = through(model, [hu], [0.01]) / 0.01
        per_mm = [through(model, [hu], [mm]) / mm for mm in (1.0, 20.0, 100.0)]
        assert thin > per_mm[0] > per_mm[1] > per_mm[2]
    # Bone's share: measured 0.76 at 80 kVp, 0.81 at 120 kVp, of what its first layers attenuate.
    ratio = through(model, [1000.0], [20.0]) / 20 / (through(model, [1000.0], [0.01]) / 0.01)
    assert 0.7 < ratio < 0.85
    # A beam already hardened by 200 mm of tissue is attenuated less by the same bone.
    alone = through(model, [1000.0], [20.0])
    behind = through(model, [0.0, 1000.0], [200.0, 20.0]) - through(model, [0.0], [200.0])
    assert 0.6 * alone < behind < 0.9 * alone


def test_a_higher_voltage_shows_less_bone_and_titanium_more_than_bone():
    bone = {kvp: through(TwoMaterialAttenuation(kvp=kvp), [1000.0], [20.0]) for kvp in SPECTRA}
    assert bone[80] > bone[100] > bone[120]
    titanium = through(TwoMaterialAttenuation(), [3071.0], [6.0])
    assert 2.2 < titanium < 3.2  # 6 mm of solid titanium at 80 kVp: a screw lets 4 to 11 % through
    assert titanium > 4 * through(TwoMaterialAttenuation(), [1500.0], [6.0])


@pytest.mark.parametrize("kvp", sorted(SPECTRA))
def test_the_tables_are_spectra(kvp):
    photons = np.array(SPECTRA[kvp])
    assert photons.sum() == pytest.approx(1.0, abs=2e-3)
    mean = (photons * (12.5 + 5 * np.arange(photons.size))).sum() / photons.sum()
    assert mean == pytest.approx({80: 43.8, 100: 50.1, 120: 55.4}[kvp], abs=0.2)  # SpekPy's own means
    kev, weights = TwoMaterialAttenuation(kvp=kvp).beam()
    assert kev.max() < kvp
    assert weights.sum() == pytest.approx(1.0)


def test_integrals_stay_finite_and_differentiable_through_much_metal():
    model = TwoMaterialAttenuation()
    hu = torch.full((1, 1, 1, 1, 1), 3071.0, dtype=torch.float64, requires_grad=True)
    image = model.line_integral(model.materials(hu)[:, :, 0] * 500.0)
    assert 20 < float(image.detach()) < 300
    hu = torch.tensor([-500.0, 50.0, 700.0, 1800.0, 2500.0], dtype=torch.float64)[None, None, None, None]
    assert torch.autograd.gradcheck(
        lambda h: model.line_integral(model.materials(h)[:, :, 0] * 20), hu.requires_grad_()
    )


def test_names_and_faults():
    for name in ATTENUATIONS:
        model = attenuation_model(name)
        assert model.name == name
        assert isinstance(model, AttenuationModel)
        assert attenuation_model(model) is model
    for make, message in (
        (lambda: attenuation_model("watr"), "use plastimatch, water, two_material"),
        (lambda: TwoMaterialAttenuation(kvp=90), "use 80, 100, 120"),
        (lambda: WaterAttenuation(511.0), "10 to 150 keV"),
        (lambda: TwoMaterialAttenuation(spectrum=[(60.0, 0.0)]), "nor all zero"),
    ):
        with pytest.raises(UserError, match=message):
            make()
