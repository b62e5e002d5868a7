"""What each metric is called, measured in and good for: the tables, reports and comparisons ask here."""

from dataclasses import dataclass, replace

from diffux2ct.evaluation.fidelity.distortion import TISSUES


@dataclass(frozen=True)
class MetricInfo:
    """title: as in a table's heading. unit: "dB", "HU", "mm", "deg" or "". about: one line."""

    title: str
    unit: str
    larger_is_better: bool
    about: str


_TISSUE_NAMES = {"soft": "soft tissue"}


def _range(low: float, high: float) -> str:
    if low == -float("inf"):
        return f"below {high:g} HU"
    return f"from {low:g} HU" if high == float("inf") else f"{low:g} to {high:g} HU"


_DISTORTION = {
    "psnr": MetricInfo(
        "PSNR", "dB", True, "per slice, mean over three axes; a slice without any error counts as 100 dB"
    ),
    "psnr3d": MetricInfo(
        "PSNR3D", "dB", True, "one mean squared error per volume; the number to compare methods by"
    ),
    "ssim": MetricInfo("SSIM", "", True, "per slice, 7×7 window, mean over three axes"),
    "ssim_axial": MetricInfo("SSIM axial", "", True, "of axial slices only, 7×7 window"),
    "ssim_coronal": MetricInfo("SSIM coronal", "", True, "of coronal slices only, 7×7 window"),
    "ssim_sagittal": MetricInfo("SSIM sagittal", "", True, "of sagittal slices only, 7×7 window"),
    "ssim3d": MetricInfo("SSIM3D", "", True, "7×7×7 window"),
    "ms_ssim3d": MetricInfo(
        "MS-SSIM3D",
        "",
        True,
        "multi-scale, Gaussian 11×11×11 window, as many of Wang's 5 scales as fit (4 at 128)",
    ),
    "mae": MetricInfo("MAE", "HU", False, "mean absolute error over all voxels"),
    **{
        f"mae_{name}": MetricInfo(
            f"MAE {_TISSUE_NAMES.get(name, name)}",
            "HU",
            False,
            f"mean absolute error where the truth is {_range(*span)}",
        )
        for name, span in TISSUES.items()
    },
}

_PERCEPTUAL = {
    "lpips": MetricInfo(
        "LPIPS", "", False, "perceptual distance of slices (AlexNet, v0.1), mean over three axes"
    ),
    "fid_medclip": MetricInfo(
        "FID (MedCLIP)", "", False, "Fréchet distance of slices' features; falls with their number"
    ),
    "fd_ct": MetricInfo(
        "FD (CT encoder)", "", False, "Fréchet distance of volumes' features from a 3D CT encoder, not FID"
    ),
    "kd_ct": MetricInfo(
        "KD (CT encoder)", "", False, "unbiased kernel distance of the same features; may be negative"
    ),
}

_CLINICAL = {
    "dice_bone": MetricInfo("Dice bone", "", True, "overlap of what exceeds 226 HU in large pieces"),
    "hd95_bone": MetricInfo(
        "HD95 bone", "mm", False, "95% Hausdorff distance of the surfaces of bone above 226 HU"
    ),
    "implant_recall": MetricInfo(
        "Implants found", "", True, "share of true screws and rods that have a match"
    ),
    "implant_precision": MetricInfo(
        "Implants right", "", True, "share of reconstructed screws and rods that have a match"
    ),
    "implant_tip_mm": MetricInfo("Implant tip error", "mm", False, "distance of matched tips"),
    "implant_axis_deg": MetricInfo("Implant axis error", "deg", False, "angle between matched axes"),
    "implant_rod_mm": MetricInfo("Rod error", "mm", False, "mean distance of matched rods' centre lines"),
    "vertebra_found": MetricInfo("Vertebrae found", "", True, "share of the true vertebrae that are found"),
    "vertebra_height_mm": MetricInfo(
        "Vertebral height error", "mm", False, "absolute error of the height of vertebrae"
    ),
    "vertebra_spacing_mm": MetricInfo(
        "Vertebral spacing error",
        "mm",
        False,
        "absolute error of the distance between neighbouring vertebrae",
    ),
    **{
        f"xray_residual_{key}{view}": MetricInfo(
            f"X-ray residual, {view}{title}",
            "",
            False,
            f"{about} of re-projected and given line integrals; the truth itself has one below its full size",
        )
        for view in ("frontal", "lateral")
        for key, title, about in (
            ("", "", "mean absolute difference"),
            ("rms_", ", RMS", "root mean square difference"),
        )
    },
}

INFO: dict[str, MetricInfo] = _DISTORTION | _PERCEPTUAL | _CLINICAL
"""By the metric's key in per_case.csv and metrics.json. Keys made of a structure's name: see `metric_info`."""

CASE_COUNTS = {
    "implant_unseen": "labelled screws and rods that even the true volume does not show; nothing is asked of them"
}
"""Columns of per_case.csv that count what is true of a case, whatever reconstructs it: no metrics, without a floor."""

_FAMILIES = {
    "dice": ("Dice {}", "", True, "overlap of {} as a network segments it in both volumes"),
    "hd95": (
        "HD95 {}",
        "mm",
        False,
        "95% Hausdorff distance of the surfaces of {}, segmented in both volumes",
    ),
}


_AGAINST = {
    "labels_": ("labels", "{}: a network's segmentation of the reconstruction against the true labels"),
    "ceiling_": ("ceiling", "{}: a network's segmentation of the true volume against the labels, its best"),
}
"""Variants of the families above: what is compared with what."""


def has_floor(key: str) -> bool:
    """Whether a metric judges an answer, and so also the mean volume's; a ceiling is of the true volume alone."""
    return "_ceiling_" not in key


def metric_info(key: str) -> MetricInfo | None:
    """What `INFO` says of a key, or of ``dice_<structure>`` and ``hd95_<structure>``; None for what is no metric."""
    if key.startswith("segmented_"):
        told = INFO.get(key.removeprefix("segmented_"))
        return told and replace(told, title=f"{told.title}, segmented")
    family, _, structure = key.partition("_")
    if key in INFO or family not in _FAMILIES or not structure:
        return INFO.get(key)
    title, unit, larger_is_better, about = _FAMILIES[family]
    name = structure.replace("_", " ")
    for start, told in _AGAINST.items():
        if structure.startswith(start):
            name, about = f"{name.removeprefix(start.replace('_', ' '))}, {told[0]}", told[1]
    return MetricInfo(title.format(name), unit, larger_is_better, about.format(f"the {name}"))
