"""``synthesize_drr.py``: one CT in, its frontal and lateral digitally reconstructed radiographs out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from diffux2ct import __version__
from diffux2ct.atomic import replaced_files, write_text
from diffux2ct.cli.hydra_app import hydra_app
from diffux2ct.errors import UserError
from diffux2ct.xray.attenuation import ATTENUATIONS, AttenuationModel, attenuation_model
from diffux2ct.xray.camera import Camera, camera_preset
from diffux2ct.xray.drr import OUTPUTS, PROJECTORS, encode_output, render_pair
from diffux2ct.xray.effects import XrayEffects
from diffux2ct.xray.pose import Pose, random_poses

_PNG_MAX = 2**16 - 1
_STORED = {
    "line_integral": "line integrals",
    "transmission": "transmission, between 0 and 1,",
    "max": "line integrals over each image's largest",
}


def main() -> None:
    """Entry of scripts/synthesize_drr.py and of the installed command."""
    hydra_app("drr", run)


def run(cfg: DictConfig) -> None:
    """Read ``cfg.ct``, render both views and write the folder ``cfg.out``, whole or not at all.

    Raises:
        UserError: a setting or the CT is not usable.
    """
    # Imported here so that --help answers at once.
    from diffux2ct.data.io.volume import read_ct
    from diffux2ct.data.preparation.cube import cut_cube

    source, out = _path(cfg, "ct"), _path(cfg, "out")
    size = _whole("size", cfg.size)
    spacing = _number("spacing", cfg.spacing)
    window = _window(cfg.window)
    camera = camera_preset(str(cfg.camera), size, spacing)
    scene = _scene(cfg)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give out= a folder")

    ct = read_ct(source)
    for note in ct.meta.get("notes", ()):
        print(note)
    # As in preparation with grid=centre: around the scan's very centre, not the nearest whole voxel.
    hu = cut_cube(ct, size, spacing, np.array(ct.centre))
    origin = [middle - (size - 1) / 2 * spacing for middle in ct.centre]
    if window is not None:
        hu = hu.clip(*window)
    line_integrals = scene.render(hu, (spacing, spacing, spacing), camera, size)
    images, scales = {}, {}
    for view, image in line_integrals.items():
        images[view], scales[view] = encode_output(image, scene.output)
    record = {
        "camera": camera.to_dict(),
        "source": str(source),
        "size": size,
        "spacing": [spacing] * 3,
        "origin": origin,
        "window": None if window is None else list(window),
        **scene.to_dict(),
        "scale": scales,
        # A PNG's grey level times this is the .npy file's value.
        "png_scale": {view: _png_scale(image) for view, image in images.items()},
        "units": _units(scene.output),
        "axes": {
            "npy": "rows to Superior; columns to Left (frontal) or Posterior (lateral)",
            "png": "as npy with the rows reversed, so that the head is up",
        },
        "version": __version__,
    }
    _write(out, images, record)
    peaks = ", ".join(f"{view} up to {image.max():.2f}" for view, image in line_integrals.items())
    print(
        f"wrote {out}: {_STORED[scene.output]} of {size}x{size}, camera {camera.name}; line integrals: {peaks}"
    )


@dataclass(frozen=True)
class _Scene:
    """How the X-rays are taken, apart from the camera."""

    projector: str
    attenuation: AttenuationModel
    poses: Mapping[str, Pose]
    effects: XrayEffects
    seed: int
    output: str

    def render(
        self, hu: np.ndarray, spacing: tuple[float, float, float], camera: Camera, size: int
    ) -> dict[str, np.ndarray]:
        """Line integrals of both views, [size, size], with the exposure's effects."""
        pair = render_pair(
            hu,
            spacing,
            camera,
            size,
            projector=self.projector,
            attenuation=self.attenuation,
            jitter=self.poses,
        )
        generator = torch.Generator().manual_seed(self.seed)
        return {
            view: self.effects(torch.from_numpy(image)[None, None], generator)[0, 0].numpy()
            for view, image in pair.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for camera.json."""
        return {
            "projector": self.projector,
            "attenuation": asdict(self.attenuation),  # type: ignore[call-overload]
            "pose": {view: pose.to_dict() for view, pose in self.poses.items()},
            "effects": asdict(self.effects),
            "seed": self.seed,
            "output": self.output,
        }


def _scene(cfg: DictConfig) -> _Scene:
    name, output, seed = str(cfg.attenuation), str(cfg.output), cfg.seed
    settings = {"water": {"kev": _number("kev", cfg.kev, "keV")}, "two_material": {"kvp": cfg.kvp}}.get(name)
    attenuation = attenuation_model(name) if settings is None else ATTENUATIONS[name](**settings)
    if str(cfg.projector) not in PROJECTORS:
        raise UserError(f"projector={cfg.projector}: use {', '.join(PROJECTORS)}")
    if output not in OUTPUTS:
        raise UserError(f"output={output}: use {', '.join(OUTPUTS)}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed={seed}: give a whole number from 0 up")
    fixed = Pose(_three("rotation", cfg.rotation), _three("shift", cfg.shift))
    drawn = random_poses(np.random.default_rng(seed), *_jitter(cfg.pose_jitter))
    poses = {view: fixed.moved(pose) for view, pose in drawn.items()}
    effects = OmegaConf.to_container(cfg.effects)
    try:
        exposure = XrayEffects(**effects)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"effects={effects}: {error}; --help lists them") from error
    return _Scene(str(cfg.projector), attenuation, poses, exposure, seed, output)


def _units(output: str) -> dict[str, str]:
    undo = {
        "line_integral": "line integral of attenuation along the ray, dimensionless, no exponential",
        "transmission": "share of the beam that arrives, exp(-line integral); its -log is the line integral",
        "max": "line integral over the image's largest; times scale it is the line integral",
    }
    return {
        "camera": "mm; pitch is (rows, columns) on the panel",
        "spacing": "mm (x, y, z)",
        "origin": "mm (x, y, z), LPS, centre of the first voxel",
        "window": "HU, clipped before projection",
        "pose": "degrees about, and mm along, (x, y, z) through the centre: the patient is turned, then shifted",
        "npy": undo[output],
        "scale": "line integral per value of the .npy file (diffux2ct.xray.drr.decode_output)",
        "png_scale": "value of the .npy file per grey level",
    }


def _write(out: Path, images: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write the X-rays as .npy and .png, and camera.json, which describes them."""
    with replaced_files(out, record="camera.json") as partial:
        for view, image in images.items():
            np.save(partial / f"{view}.npy", image)
            grey = np.round(image[::-1] / record["png_scale"][view]).astype(np.uint16)
            Image.fromarray(grey).save(partial / f"{view}.png")
        write_text(partial / "camera.json", json.dumps(record, indent=1) + "\n")


def _png_scale(image: np.ndarray) -> float:
    return float(image.max()) / _PNG_MAX or 1.0


def _path(cfg: DictConfig, key: str) -> Path:
    if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
        raise UserError(f"{key} is not given; add {key}=PATH to the command (--help explains it)")
    return Path(str(cfg[key]))


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2048:
        raise UserError(
            f"{name}={value}: give a whole number of voxels from 1 to 2048, for instance {name}=128"
        )
    return value


def _number(name: str, value: Any, unit: str = "mm") -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise UserError(
            f"{name}={value}: give a positive number of {unit}, for instance {name}={60 if unit == 'keV' else 2.0}"
        )
    return float(value)


def _window(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(edge) for edge in value)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise UserError(f"window={value}: give two rising HU, for instance 'window=[-1024,1500]', or null")
    return low, high


def _three(name: str, value: Any) -> tuple[float, float, float]:
    try:
        x, y, z = (float(number) for number in value)
    except (TypeError, ValueError):
        x = y = z = float("nan")
    if not np.isfinite((x, y, z)).all():
        raise UserError(f"{name}={value}: give three numbers (x, y, z), for instance '{name}=[0,0,10]'")
    return x, y, z


def _jitter(value: Any) -> tuple[float, float]:
    if value is None:
        return 0.0, 0.0
    try:
        if set(value) != {"degrees", "mm"}:
            raise ValueError
        return float(value["degrees"]), float(value["mm"])
    except (TypeError, ValueError, KeyError):
        raise UserError(
            f"pose_jitter={value}: give both, for instance 'pose_jitter={{degrees: 3, mm: 5}}', or null"
        ) from None
