"""What an import refuses, and what it tells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from tests.data.io.x2ct.x2ct_files import SIZE, STEP, body, import_x2ct, published, survey_x2ct

from diffux2ct.cli.prepare import run as prepare_command
from diffux2ct.data.io.x2ct.file import x2ct_views
from diffux2ct.data.preparation.stored import SETTINGS, SPLIT, orientation
from diffux2ct.errors import UserError


def command(*overrides: str) -> None:
    """``prepare_dataset.py`` with the given settings."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        cfg = compose("prepare", overrides=["dataset=x2ct", "workers=1", "contact_sheet=false", *overrides])
    prepare_command(cfg)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("dataset.prepare.pose_jitter={degrees: 3, mm: 5}", "pose_jitter"),
        ("dataset.prepare.grid=lumbar", "grid=lumbar"),
        ("dataset.prepare.min_filled=0.5", "min_filled=0.5"),
        ("dataset.prepare.remove_couch=true", "remove_couch=True"),
        ("dataset.prepare.instrument={levels: [1, 4]}", "instrument"),
        ("dataset.prepare.rescale=[1,0]", "rescale"),
        ("dataset.prepare.labels=ours", "labels=ours"),
        ("dataset.prepare.attenuation=water", "attenuation=water"),
        ("dataset.prepare.projector=joseph", "projector=joseph"),
        ("dataset.prepare.origins=[A]", "origins"),
        ("crops=3", "crops=3"),
        ("dataset.prepare.test_crops=2", "test_crops=2"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, override: str, key: str) -> None:
    published(tmp_path / "raw/s1/ct_xray_data.h5", body())
    for dry_run in ("true", "false"):
        with pytest.raises(UserError, match=f"^{key}.* has no effect on X2CT-GAN's .*leave it out") as error:
            command(f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", f"dry_run={dry_run}", override)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_same_scan_under_two_names_and_two_runs(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name, number in (("a b", 0), ("a_b", 1), ("c", 2), ("d", 2)):
        published(raw / name / "ct_xray_data.h5", body(number))
    with h5py.File(raw / "a_b/ct_xray_data.h5", "a") as file:
        del file["spacing"]
    options: dict[str, Any] = {
        "settings": replace(SETTINGS, size=SIZE, spacing=STEP),
        "split": {"test": 1},
        "progress": False,
    }
    rows, told = survey_x2ct(raw, **options)
    report = import_x2ct(raw, out, "x", **options)
    # Two scans whose names are made safe alike are two cases.
    assert sorted(path.name for path in (out / "cases").iterdir()) == ["a_b", "a_b_s2", "c"]
    bone = [np.load(out / f"cases/{name}/volume.npy")[12, 11, 4] for name in ("a_b", "a_b_s2", "c")]
    assert bone == [1200, 1199, 1198]
    twin = str(Path("d/ct_xray_data.h5"))
    assert report.not_used == [(twin, f"same scan as {Path('c/ct_xray_data.h5')} of patient c, which is used")]
    assert (told.not_used, told.split, told.notes) == (report.not_used, report.split, report.notes)
    assert [row["case"] for row in rows] == ["a_b", "a_b_s2", "c"]
    assert any("size in mm is missing" in note for note in report.notes)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = import_x2ct(raw, out, "x", **options)
    assert (again.written, again.found) == (0, 3)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_flipped_xrays_are_reported(tmp_path: Path) -> None:
    views = x2ct_views(body(), (STEP,) * 3, SIZE)
    assert orientation(views["frontal"][:, ::-1], views["frontal"]) == "mirrored"
    assert orientation(views["lateral"][::-1], views["lateral"]) == "upside down"
    assert orientation(views["lateral"], views["lateral"]) == "as the CT"
    published(tmp_path / "raw/s1/ct_xray_data.h5", body(), {k: v[::-1] for k, v in views.items()})
    settings = replace(SETTINGS, size=16, spacing=STEP)
    report = import_x2ct(
        tmp_path / "raw", tmp_path / "out", "x", settings=settings, split={"test": 1.0}, progress=False
    )
    assert any("s1/ct_xray_data.h5: X-rays look flipped against their CT" in note for note in report.notes)


def test_defaults_are_the_preset_s(phantoms: Path) -> None:
    """What differs from ``SETTINGS`` counts as asked for, so that they must be what dataset=x2ct says."""
    with initialize_config_module("diffux2ct.configs", version_base="1.3"):
        recipe = compose("prepare", overrides=["dataset=x2ct"]).dataset.prepare
    assert {key: recipe[key] for key in SETTINGS.as_dict()} == SETTINGS.as_dict()
    assert dict(recipe.split) == SPLIT
