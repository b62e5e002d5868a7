"""``synthesize_drr.py``: one CT in, its digitally reconstructed radiographs out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from omegaconf import DictConfig

from diffux2ct import __version__
from diffux2ct.arguments import NotNegative, Positive, Range, Seed, Share, Size, Three, Window, read
from diffux2ct.cli.hydra_app import hydra_app, warn_idle
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_files, write_text

# Torch and the readers are imported where they are used: --help prints at once.

_PNG_MAX = 2**16 - 1
_OUTPUTS = {  # of the printed line, and of camera.json
    "line_integral": ("line integrals", "line integral of attenuation along the ray, dimensionless, no exponential"),
    "transmission": (
        "transmission, between 0 and 1,",
        "share of the beam that arrives, exp(-line integral); its -log is the line integral",
    ),
    "max": (
        "line integrals over each image's largest",
        "line integral over the image's largest; times scale it is the line integral",
    ),
}


def main() -> None:
    """Entry of scripts/synthesize_drr.py and of the installed command."""
    hydra_app("drr", run, Radiograph)


@dataclass(frozen=True)
class Jitter:
    """The most by which a pose is off."""

    degrees: NotNegative
    mm: NotNegative


@dataclass(frozen=True)
class Effects:
    """Settings of ``xray.effects.XrayEffects``, which change nothing by default."""

    photons: Positive | None = None
    electronic_noise: NotNegative = 0.0
    scatter_to_primary: NotNegative = 0.0
    scatter_width: Positive = 0.1
    contrast: Positive = 1.0
    gamma: Positive = 1.0
    saturation: Positive | None = None
    clahe: Share = 0.0
    sharpen: NotNegative = 0.0
    sharpen_width: Positive = 0.015
    collimation: tuple[Share, Share, Share, Share] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Radiograph:
    """Keys of ``configs/drr.yaml``."""

    ct: Path
    out: Path
    camera: Literal["lumbar", "x2ct", "parallel"]
    size: Size
    spacing: Positive
    window: Window | None
    projector: Literal["joseph", "siddon", "trilinear"]
    attenuation: Literal["plastimatch", "water", "two_material"]
    kev: Annotated[float, Range(10, 150)]
    kvp: Literal[80, 100, 120]
    output: Literal["line_integral", "transmission", "max"]
    rotation: Three
    shift: Three
    views: list[float]
    pose_jitter: Jitter | None
    effects: Effects
    seed: Seed


def run(config: DictConfig) -> None:
    """Read ``ct``, render its views and write the folder ``out``, whole or not at all.

    Raises UserError for a setting or a CT that is not usable.
    """
    from diffux2ct.data.io.volume import read_ct
    from diffux2ct.data.preparation.cube import cut_cube
    from diffux2ct.xray.camera import camera_preset
    from diffux2ct.xray.drr import encode_output

    cfg = read(Radiograph, config)
    warn_idle(idle_settings(cfg))
    size, spacing = cfg.size, cfg.spacing
    camera = camera_preset(cfg.camera, size, spacing)
    if cfg.out.exists() and not cfg.out.is_dir():
        raise UserError(f"{cfg.out}: is a file; give out= a folder")

    # Cut the cube. As in preparation with grid=centre: around the scan's very centre, not the nearest whole voxel.
    ct = read_ct(cfg.ct)
    for note in ct.meta.get("notes", ()):
        print(note)
    hu = np.round(cut_cube(ct, size, spacing, np.array(ct.centre)))  # whole HU, as a case is stored
    origin = [middle - (size - 1) / 2 * spacing for middle in ct.centre]
    if cfg.window is not None:
        hu = hu.clip(*cfg.window)

    # Take the X-rays.
    line_integrals, scene = _render(cfg, hu, camera)
    images, scales = {}, {}
    for view, image in line_integrals.items():
        images[view], scales[view] = encode_output(image, cfg.output)

    # Write them with all that they depend on.
    record = {
        "camera": camera.to_dict(),
        "source": str(cfg.ct),
        "size": size,
        "spacing": [spacing] * 3,
        "origin": origin,
        "window": None if cfg.window is None else list(cfg.window),
        **scene,
        "scale": scales,
        # A PNG's grey level times this is the .npy file's value.
        "png_scale": {view: float(image.max()) / _PNG_MAX or 1.0 for view, image in images.items()},
        "units": _units(cfg.output),
        "axes": {
            "npy": "rows to Superior; columns to Left (frontal) or Posterior (lateral), else along (cos a, -sin a)",
            "png": "as npy with the rows reversed, so that the head is up",
        },
        "version": __version__,
    }
    _write(cfg.out, images, record)
    peaks = ", ".join(f"{view} up to {image.max():.2f}" for view, image in line_integrals.items())
    print(f"wrote {cfg.out}: {_OUTPUTS[cfg.output][0]} of {size}x{size}, camera {camera.name}; line integrals: {peaks}")


def idle_settings(cfg: Radiograph) -> dict[str, str]:
    """Settings without effect beside the others, and why."""
    effects, random = cfg.effects, cfg.pose_jitter is not None or cfg.effects.photons is not None
    return {
        **({} if cfg.attenuation == "water" else {"kev": "it is of attenuation=water"}),
        **({} if cfg.attenuation == "two_material" else {"kvp": "it is of attenuation=two_material"}),
        **({} if effects.photons is not None else {"effects.electronic_noise": "effects.photons=null"}),
        **({} if effects.scatter_to_primary else {"effects.scatter_width": "effects.scatter_to_primary=0"}),
        **({} if effects.sharpen else {"effects.sharpen_width": "effects.sharpen=0"}),
        **({} if random else {"seed": "neither pose_jitter nor effects.photons draws anything"}),
    }


def _render(cfg: Radiograph, hu: np.ndarray, camera: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Line integrals of each view, [size, size], with the exposure's effects; and the settings for camera.json.

    hu: [size, size, size], a cube of ``cfg.spacing`` mm a voxel.
    """
    import torch

    from diffux2ct.xray.attenuation import ATTENUATIONS
    from diffux2ct.xray.drr import render_pair
    from diffux2ct.xray.effects import XrayEffects
    from diffux2ct.xray.pose import Pose, drawing_order, random_poses, view_names

    settings = {"water": {"kev": cfg.kev}, "two_material": {"kvp": cfg.kvp}}.get(cfg.attenuation, {})
    attenuation = ATTENUATIONS[cfg.attenuation](**settings)
    jitter = cfg.pose_jitter or Jitter(0.0, 0.0)
    views, stream = view_names(cfg.views, "views"), np.random.default_rng(cfg.seed)
    drawn = random_poses(stream, jitter.degrees, jitter.mm)  # first, so that no further view changes them
    drawn |= random_poses(stream, jitter.degrees, jitter.mm, [view for view in views if view not in drawn])
    poses = {view: Pose(cfg.rotation, cfg.shift).moved(drawn[view]) for view in views}
    effects = XrayEffects(**asdict(cfg.effects))
    pair = render_pair(
        hu,
        (cfg.spacing,) * 3,
        camera,
        cfg.size,
        projector=cfg.projector,
        attenuation=attenuation,
        jitter=poses,
        views=views,
    )
    generator = torch.Generator().manual_seed(cfg.seed)
    images = {
        view: effects(torch.from_numpy(pair[view])[None, None], generator)[0, 0].numpy() for view in drawing_order(pair)
    }
    return images, {
        "projector": cfg.projector,
        "attenuation": asdict(attenuation),  # type: ignore[call-overload]
        "pose": {view: pose.to_dict() for view, pose in poses.items()},
        "effects": asdict(effects),
        "seed": cfg.seed,
        "output": cfg.output,
    }


def _units(output: str) -> dict[str, str]:
    return {
        "camera": "mm; pitch is (rows, columns) on the panel",
        "spacing": "mm (x, y, z)",
        "origin": "mm (x, y, z), LPS, centre of the first voxel",
        "window": "HU, clipped before projection",
        "pose": "degrees about, and mm along, (x, y, z) through the centre: the patient is turned, then shifted",
        "npy": _OUTPUTS[output][1],
        "scale": "line integral per value of the .npy file (diffux2ct.xray.drr.decode_output)",
        "png_scale": "value of the .npy file per grey level",
    }


def _write(out: Path, images: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write the X-rays as .npy and .png, and camera.json, which describes them."""
    from PIL import Image

    with replaced_files(out, record="camera.json") as partial:
        for view, image in images.items():
            np.save(partial / f"{view}.npy", image)
            grey = np.round(image[::-1] / record["png_scale"][view]).astype(np.uint16)
            Image.fromarray(grey).save(partial / f"{view}.png")
        write_text(partial / "camera.json", json.dumps(record, indent=1) + "\n")
