"""Draw the camera presets to scale, with what falls off the panel: python scripts/draw_cameras.py [FOLDER].

Writes docs/images/camera_x2ct.png and camera_lumbar.png, or into FOLDER, and prints the share of voxels on the panel.
"""

import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffux2ct.xray.camera import Camera, camera_preset

FINE = 3  # drawn this much larger, then shrunk
BEAM_PX = 620  # of the small picture, from source to panel
INK, FAINT, BEAM, CUBE, LOST = "#1f2933", "#8895a3", "#fff1d0", "#3f6fb5", "#c8432b"


@dataclass(frozen=True)
class Scene:
    """A camera on its whole panel, the cubes that it looks at (mm), and what is said below.

    image: mm of the panel's middle that the image keeps, where that is not all of it.
    """

    title: str
    camera: Camera
    cubes: tuple[float, ...]
    notes: tuple[str, ...]
    image: float | None = None

    @property
    def px_per_mm(self) -> float:
        return BEAM_PX / self.camera.sid


def on_panel(camera: Camera, side: float, count: int = 128) -> float:
    """Share of the voxels of a cube of ``side`` mm whose centres a view's panel catches, frontal as lateral."""
    line = (np.arange(count) - (count - 1) / 2) * side / count
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    pixel = camera.voxel_to_pixel(np.stack((x, y, z), -1), "frontal")
    inside = (pixel > -0.5) & (pixel < np.array([camera.rows, camera.cols]) - 0.5)
    return float(inside.all(-1).mean())


def scenes() -> dict[str, Scene]:
    """The presets' pictures by file name."""
    x2ct = camera_preset("x2ct", 128, 2.5)
    image = camera_preset("lumbar", 128, 2.0)
    panel = replace(image, rows=440, cols=440, pitch=(1.0, 1.0))
    shares = [f"{100 * on_panel(x2ct, side):.1f} %" for side in (320.0, 256.0)]
    cut, whole = (f"{100 * on_panel(camera, 256.0):.1f} %" for camera in (image, panel))
    return {
        "camera_x2ct": Scene(
            "x2ct: SAD 541 mm, SID 949 mm, panel 500 mm with 320 x 320 pixels",
            x2ct,
            (320.0, 256.0),
            (f"voxels on the panel: {shares[0]} of the 320 mm cube, {shares[1]} of a 256 mm cube",),
        ),
        "camera_lumbar": Scene(
            "lumbar: SAD 1000 mm, SID 1500 mm, panel 440 mm",
            panel,
            (256.0,),
            (
                f"voxels on the panel: {whole} of the 256 mm cube",
                "the image keeps the panel's middle 384 mm (dashed), where a pixel is a voxel at the isocentre: "
                f"{cut} of the voxels",
            ),
            384.0,
        ),
    }


class Sketch:
    """A drawing in millimetres around an isocentre that lies at ``centre`` (pixels of the small picture)."""

    def __init__(self, image: Image.Image, centre: tuple[float, float], px_per_mm: float) -> None:
        self.image, self.pen, self.centre, self.scale = (image, ImageDraw.Draw(image, "RGBA"), centre, px_per_mm)

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        """(right, down) mm to pixels of the large picture."""
        right, down = (c + p * self.scale for c, p in zip(self.centre, point, strict=True))
        return right * FINE, down * FINE

    def polygon(self, points, **style) -> None:
        self.pen.polygon([self.at(point) for point in points], **style)

    def line(self, *points, fill=INK, width=1.0, dash: float = 0.0) -> None:
        """A line through points; ``dash`` in mm."""
        for a, b in pairwise(points):
            length = float(np.hypot(b[0] - a[0], b[1] - a[1]))
            pieces = max(1, round(length / (2 * dash))) if dash else 1
            share = 0.5 if dash else 1.0
            for k in range(pieces):
                ends = [
                    self.at((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
                    for t in (k / pieces, (k + share) / pieces)
                ]
                self.pen.line(ends, fill=fill, width=round(width * FINE))

    def dot(self, point, radius: float, fill) -> None:
        x, y = self.at(point)
        r = radius * FINE
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def text(self, point, words: str, anchor: str = "mm", size: int = 12, fill=INK) -> None:
        self.pen.text(self.at(point), words, fill=fill, anchor=anchor, font=ImageFont.load_default(size * FINE))

    def hatch_outside(self, side: float, scene: Scene) -> None:
        """Hatch the square of ``side`` mm where rays that run down the page miss the panel, or what is kept of it."""
        camera = scene.camera
        half, panel = side / 2, (scene.image or camera.cols * camera.pitch[1]) / 2
        mask = Image.new("L", self.image.size, 0)
        pen = ImageDraw.Draw(mask)
        square = [(-half, -half), (half, -half), (half, half), (-half, half)]
        pen.polygon([self.at(p) for p in square], fill=255)
        near, far = ((camera.sad + depth) * panel / camera.sid for depth in (-half, half))
        seen = [(-near, -half), (near, -half), (far, half), (-far, half)]
        pen.polygon([self.at(p) for p in seen], fill=0)
        lines = Image.new("RGBA", self.image.size, (0, 0, 0, 0))
        stroke = ImageDraw.Draw(lines)
        reach, step = max(self.image.size), 6 * FINE
        for start in range(-reach, reach, step):
            stroke.line([(start, 0), (start + reach, reach)], fill=LOST, width=round(1.2 * FINE))
        tint = Image.new("RGBA", self.image.size, (200, 67, 43, 40))
        for layer in (tint, lines):
            self.image.paste(layer, (0, 0), Image.composite(layer.getchannel("A"), Image.new("L", mask.size), mask))


def beam(sketch: Sketch, scene: Scene) -> None:
    """Source, outermost rays, axis and panel of the frontal view, whose rays run down the page."""
    camera = scene.camera
    panel, back = camera.cols * camera.pitch[1] / 2, camera.sid - camera.sad
    source, edges = (0.0, -camera.sad), [(-panel, back), (panel, back)]
    sketch.polygon([source, *edges], fill=BEAM)
    for edge in edges:
        sketch.line(source, edge, width=0.8)
    sketch.line(source, (0, back), fill=FAINT, width=0.7, dash=4)
    sketch.line(*edges, width=3.5)
    if scene.image:
        for edge in (-scene.image / 2, scene.image / 2):
            sketch.line(source, (edge, back), fill=LOST, width=0.8, dash=6)
    sketch.dot(source, 5, INK)
    sketch.text((24, -camera.sad), "frontal source", "lm")
    sketch.text((0, back + 12 / sketch.scale), f"frontal panel, {2 * panel:g} mm")


def lateral_beam(sketch: Sketch, camera: Camera) -> None:
    """The lateral view's outline, whose rays run to the right."""
    panel, back = camera.cols * camera.pitch[1] / 2, camera.sid - camera.sad
    source = (-camera.sad, 0.0)
    for edge in (-panel, panel):
        sketch.line(source, (back, edge), fill=FAINT, width=0.9, dash=6)
    sketch.line(source, (back, 0.0), fill=FAINT, width=0.7, dash=4)
    sketch.line((back, -panel), (back, panel), fill=FAINT, width=3.5)
    sketch.dot(source, 5, FAINT)
    sketch.text((-camera.sad - 5 / sketch.scale, -22 / sketch.scale), "lateral source", "lm", fill=FAINT)
    sketch.text((back + 3 / sketch.scale, panel + 12 / sketch.scale), "lateral panel", "rm", fill=FAINT)


def cubes(sketch: Sketch, scene: Scene, sides: str) -> None:
    """The cubes' outlines, with what the frontal image misses in this plane. sides: left, right, up, down."""
    for side in scene.cubes:
        sketch.hatch_outside(side, scene)
    for k, side in enumerate(scene.cubes):
        half = side / 2
        corners = [(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)]
        sketch.line(*corners, fill=CUBE, width=2, dash=8 if k else 0)
        sketch.text((-half + 5 / sketch.scale, half - 9 / sketch.scale), f"{side:g} mm", "lm", fill=CUBE)
    sketch.dot((0, 0), 3, INK)
    sketch.text((5 / sketch.scale, -9 / sketch.scale), "isocentre", "lm", size=10)
    out = max(scene.cubes) / 2 + 16 / sketch.scale
    for letter, place in zip(sides, ((-out, 16), (out, 16), (14, -out), (14, out)), strict=True):
        sketch.text(place, letter, size=12, fill=CUBE)


def lengths(sketch: Sketch, camera: Camera) -> None:
    """SAD and SID to the left of the beam."""
    place, back = -camera.cols * camera.pitch[1] / 2 - 14 / sketch.scale, camera.sid - camera.sad
    for shift, end, words in (
        (0.0, 0.0, f"SAD {camera.sad:g} mm"),
        (-88 / sketch.scale, back, f"SID {camera.sid:g} mm"),
    ):
        x = place + shift
        sketch.line((x, -camera.sad), (x, end), fill=FAINT)
        for y in (-camera.sad, end):
            sketch.line((x - 4 / sketch.scale, y), (x + 4 / sketch.scale, y), fill=FAINT)
        sketch.text((x - 6 / sketch.scale, -camera.sad / 2), words, "rm", size=11, fill=FAINT)
    sketch.line((place, 0), (0, 0), fill=FAINT, width=0.7, dash=4)


def picture(scene: Scene) -> Image.Image:
    """Both views of the scene: from the feet with both beams, and from the patient's left with the frontal one."""
    camera, scale = scene.camera, scene.px_per_mm
    panel, back = camera.cols * camera.pitch[1] * scale, (camera.sid - camera.sad) * scale
    left, right = camera.sad * scale + 20, back + 30
    above = camera.sad * scale + 92
    width = round(left + right + 190 + panel + 30)
    height = round(above + back + 52 + 22 * len(scene.notes))
    image = Image.new("RGBA", (width * FINE, height * FINE), "white")

    top = Sketch(image, (left, above), scale)
    beam(top, scene)
    lateral_beam(top, camera)
    # Drawn along the beam: a reversed camera turns the patient around.
    cubes(top, scene, "LRPA" if camera.reverse else "RLAP")
    side = Sketch(image, (left + right + 190 + panel / 2, above), scale)
    beam(side, scene)
    cubes(side, scene, "FHPA" if camera.reverse else "FHAP")
    lengths(side, camera)

    page = Sketch(image, (0.0, 0.0), 1.0)
    page.text((16, 20), scene.title, "lm", size=16)
    page.text((16, 46), "seen from the feet (R right, L left, A front, P back)", "lm", fill=FAINT)
    page.text((left + right + 10, 46), "seen from the side (F feet, H head)", "lm", fill=FAINT)
    for k, note in enumerate(scene.notes):
        page.text((16, height - 22 * (len(scene.notes) - k) + 4), note, "lm", size=13)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    """Draw all presets."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes().items():
        picture(scene).save(folder / f"{name}.png", optimize=True)
        print(f"{folder / name}.png: {scene.title}; {'; '.join(scene.notes)}")


if __name__ == "__main__":
    main()
