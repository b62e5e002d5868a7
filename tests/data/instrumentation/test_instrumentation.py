"""Virtual instrumentation, on vertebrae that are painted, so that the canal is known exactly."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.data.instrumentation.painted_vertebrae import CANAL, FRAMES, digest, patient, shaft_of, share_inside

from diffux2ct.data.instrumentation import InstrumentSettings, instrument
from diffux2ct.data.instrumentation.construct import Rod
from diffux2ct.data.instrumentation.frame import Field
from diffux2ct.data.instrumentation.shapes import coverage, rod_solid
from diffux2ct.data.instrumentation.vertebra import centroids, measure_vertebra
from diffux2ct.data.io.ct_image import LabelImage
from diffux2ct.data.labels import LABELS, rod_label, screw_label
from diffux2ct.errors import UserError


@pytest.fixture(scope="module")
def operated():
    return instrument(*patient(), seed=1, bilateral=1)


def test_screws_lie_in_their_vertebrae_and_leave_the_canal_free(operated):
    _, _, record = operated
    assert sorted((s["vertebra"], s["side"]) for s in record["screws"]) == [
        ("L3", "left"), ("L3", "right"), ("L4", "left"), ("L4", "right"),
    ]  # fmt: skip
    for screw in record["screws"]:
        assert share_inside(screw, patient()[1]) >= 0.95
        local = FRAMES[LABELS[screw["vertebra"]]].to_local(shaft_of(screw))
        radius = np.sqrt((local[:, 0] / CANAL[0]) ** 2 + (local[:, 1] / CANAL[1]) ** 2)
        assert radius.min() > 1.05  # 0.4 to 0.6 mm outside the painted canal, at least
        assert np.all(np.sign(local[:, 0]) == {"left": 1, "right": -1}[screw["side"]])


def test_screws_are_as_long_and_thick_as_bone_allows(operated):
    for screw in operated[2]["screws"]:
        frame = FRAMES[LABELS[screw["vertebra"]]]
        tip, entry = (frame.to_local(np.array(screw[k])) for k in ("tip", "entry"))
        axis = (tip - entry) / screw["length"]
        # How far along its axis the front of the body (an ellipse) is from the tip.
        ahead = tip + np.arange(0, 40, 0.1)[:, None] * axis
        outside = (ahead[:, 0] / 24) ** 2 + ((ahead[:, 1] + 24) / 16) ** 2 > 1
        front = 0.1 * outside.argmax()
        assert 4.0 <= front <= 11.0  # 5 mm of bone, and screws come in steps of 5 mm
        assert 4.5 <= screw["diameter"] <= 0.85 * 9.0
        assert screw["length"] in (35, 40, 45, 50, 55)
        assert 7.0 < np.linalg.norm(np.subtract(screw["head"], screw["entry"])) < 15.0


def test_rods_join_the_heads_and_stay_under_the_skin(operated):
    ct, labels, record = operated
    assert [(rod["side"], rod["label"]) for rod in record["rods"]] == [
        ("left", rod_label(0)), ("right", rod_label(1)),
    ]  # fmt: skip
    for rod in record["rods"]:
        heads = [s["head"] for s in record["screws"] if s["side"] == rod["side"]]
        axis = np.array(rod["axis"])
        for head in heads:
            assert np.linalg.norm(axis - head, axis=1).min() < 2.6  # recorded every 5 mm
        assert np.linalg.norm(np.subtract(*heads)) + 13 < rod["length"] < np.linalg.norm(np.subtract(*heads)) + 27
    metal = np.argwhere(labels.labels > 100)
    back = ct.origin[1] + metal[:, 1].max() * ct.spacing[1]
    assert back < 75 - 3


def test_each_implant_has_its_own_label_and_the_hu_of_clipped_titanium(operated):
    plain, plain_labels = patient()
    ct, labels, record = operated
    assert ct.hu.dtype == plain.hu.dtype
    assert (ct.spacing, ct.origin) == (plain.spacing, plain.origin)
    wanted = {*FRAMES, *(screw_label(i) for i in range(4)), rod_label(0), rod_label(1)}
    assert set(np.unique(labels.labels)) - {0} == wanted
    implants = labels.labels > 100
    assert ct.hu.max() == 3071
    assert np.all(ct.hu[implants] > 2900)  # half a voxel of metal, or more
    assert np.all(labels.labels[~implants] == plain_labels.labels[~implants])
    changed = ct.hu != plain.hu
    assert 0.2 < (changed & ~implants).sum() / implants.sum() < 2.0  # partial volume around it, and nothing else
    volume = implants.sum() * np.prod(ct.spacing)
    shafts = sum(np.pi / 4 * s["diameter"] ** 2 * s["length"] for s in record["screws"])
    rods = sum(np.pi / 4 * r["diameter"] ** 2 * r["length"] for r in record["rods"])
    assert 1.0 < volume / (shafts + rods) < 2.5  # tulips are the rest


def test_another_seed_gives_other_screws(operated):
    other = instrument(*patient(), seed=2, bilateral=1)
    assert digest(other) != digest(operated)
    assert other[2]["screws"] != operated[2]["screws"]


def test_a_seed_gives_the_same_bytes_in_another_process_with_another_number_of_threads(operated):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r}); "
        "import tests.data.instrumentation.painted_vertebrae as t; "
        "from diffux2ct.data.instrumentation import instrument; "
        "print(t.digest(instrument(*t.patient(), seed=1, bilateral=1)))"
    )
    threads = "4" if os.environ.get("OMP_NUM_THREADS") != "4" else "1"
    counts = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL")}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **counts}, capture_output=True, encoding="utf-8"
    )
    assert result.stdout.strip() == digest(operated), result.stderr


def test_labels_may_have_another_grid():
    ct, _ = patient()
    _, labels = patient(spacing=(1.5, 1.5, 1.0))
    cut = LabelImage(labels.labels[:, :, 5:], labels.spacing, (labels.origin[0] + 7.5, *labels.origin[1:]))
    _, painted, record = instrument(ct, cut, seed=0)
    assert painted.labels.shape == ct.hu.shape
    assert all(share_inside(screw, patient()[1]) >= 0.9 for screw in record["screws"])


def test_metal_fills_voxels_by_its_true_volume():
    axis = np.linspace([-3.0, 2.0, -40.0], [4.0, -5.0, 40.0], 400)
    rod = Rod(1, axis, 5.5)
    grid = Field(np.zeros((60, 60, 40), np.uint8), np.array([-20.0, -21.0, -60.0]), np.array([1.0, 0.7, 2.0]))
    found = coverage(rod_solid(rod), grid)
    assert found is not None
    box, share = found
    ends = 4 / 3 * np.pi * 2.75**3
    assert share.sum() * 1.4 == pytest.approx(np.pi * 2.75**2 * rod.length + ends, rel=0.01)
    assert share.max() == 1.0
    assert share.shape == tuple(s.stop - s.start for s in box)
    centre = (share.sum((0, 1)) * (-20.0 + np.arange(box[2].start, box[2].stop))).sum() / share.sum()
    assert centre == pytest.approx(0.5, abs=0.05)


def test_the_canal_and_pedicles_are_found_where_they_were_painted():
    _, labels = patient()
    field = Field(labels.labels, np.array(labels.origin), np.array(labels.spacing))
    centres = centroids(field, range(1, 26))
    vertebra = measure_vertebra(field, 22, centres)
    assert vertebra is not None
    # The tilt is sought in steps of 4 degrees.
    assert np.degrees(np.arccos(vertebra.frame.axes[2] @ FRAMES[22].axes[2])) < 4.5
    across = FRAMES[22].to_local(vertebra.frame.origin)
    assert np.abs(across[:2]).max() < 1.5
    area = vertebra.canal.values.sum() / vertebra.canal.values.any((1, 2)).sum()
    assert area == pytest.approx(np.pi * CANAL[0] * CANAL[1], rel=0.15)
    assert [p.side for p in vertebra.pedicles] == [1, -1]
    for pedicle in vertebra.pedicles:
        assert pedicle.centre[0] * pedicle.side == pytest.approx(15.5, abs=1.5)
        assert pedicle.radius == pytest.approx(4.5, abs=0.8)


def test_the_artefact_stays_in_the_slices_with_metal():
    plain, labels = patient(spacing=(2.0, 2.0, 2.5))
    ct, painted, _ = instrument(plain, labels, seed=1, bilateral=0, artefact=True)
    slices = np.flatnonzero((painted.labels > 100).any((1, 2)))
    tissue = (painted.labels == 0) & (plain.hu == 50)
    change = np.where(tissue, ct.hu.astype(int) - plain.hu, 0)
    deviation = change.std((1, 2))
    assert np.median(deviation[slices]) > 3.0
    assert np.all(deviation[: slices[0] - 2] == 0)
    assert np.percentile(change[slices], 0.5) < -30  # dark bands
    assert np.percentile(change[slices], 99.5) > 10  # streaks


def test_some_scans_stay_as_they_are():
    plain, labels = patient()
    ct, same, record = instrument(plain, labels, seed=0, probability=0)
    assert np.array_equal(ct.hu, plain.hu)
    assert np.array_equal(same.labels, labels.labels)
    assert record["screws"] == record["rods"] == []


def blank(value: int) -> LabelImage:
    """The patient's labels without one vertebra."""
    _, labels = patient()
    return replace(labels, labels=np.where(labels.labels == value, 0, labels.labels).astype(np.uint8))


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (lambda: (patient()[0], blank(22)), r"\(L4 can\); leave this scan"),
        (lambda: patient(pedicle=4.0), r"\(none can\); leave this scan"),
        (lambda: (patient()[0], replace(patient()[1], origin=(-53.0, -60.0, -40.0))), "do not lie on the scan's bones"),
        (lambda: (patient()[0], LabelImage(np.zeros((9, 9, 9), np.uint8), (1.0,) * 3, (0.0,) * 3)), "no lumbar"),
        (lambda: patient(skin_behind=22.0), r"\(none can\); leave this scan"),
    ],
    ids=["one vertebra", "narrow pedicles", "labels of another scan", "no labels", "thin patient"],
)
def test_scans_that_take_no_screws_are_refused_in_one_line(case, told):
    with pytest.raises(UserError, match=told) as error:
        instrument(*case(), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"levls": [1, 2]}, "unknown levls; it has probability, levels"),
        ({"levels": 2}, r"levels=2: give \[lowest, highest\]"),
        ({"levels": [0, 2]}, r"levels=\[0, 2\]: give"),
        ({"levels": [1.5, 2]}, r"levels=\[1.5, 2\]: give"),
        ({"probability": 2}, "probability=2: give a share"),
        ({"diameter": [7, 5]}, r"diameter=\[7, 5\]: give"),
        ({"artefact": "yes"}, "artefact=yes: give true or false"),
        ({"metal_hu": "titanium"}, "metal_hu=titanium: give a number"),
    ],
)
def test_settings_that_cannot_be_are_named(values, told):
    with pytest.raises(UserError, match=told):
        InstrumentSettings.from_dict(values)


def test_lumbarv_open_asks_for_what_the_settings_know():
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        prepare = compose("train", overrides=["dataset=lumbarv_open"]).dataset.prepare
    values = OmegaConf.to_container(prepare.instrument)
    assert InstrumentSettings.from_dict(values) == InstrumentSettings()
    assert (prepare.source, prepare.grid, prepare.spacing, prepare.size) == ("ctspine1k", "lumbar", 2.0, 128)
    assert InstrumentSettings.from_dict(InstrumentSettings().to_dict()) == InstrumentSettings()
