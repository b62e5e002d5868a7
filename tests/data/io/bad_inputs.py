"""The corpus of bad and odd inputs: every case that bad_files, bad_geometry and bad_dicom write."""

from tests.data.io import bad_dicom, bad_files, bad_geometry
from tests.data.io.bad_case import CASES, BadInput

__all__ = ["CASES", "BadInput", "bad_dicom", "bad_files", "bad_geometry"]
