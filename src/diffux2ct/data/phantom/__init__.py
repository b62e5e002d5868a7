"""A procedural torso CT with labels: the data set that ships inside the package.

Its purpose is structures that two X-rays must separate, not exact anatomy. A patient is one model from the neck to the
thighs, of which a region is in view: the lumbar spine, the pelvis or the thorax. ``ranges`` lists the values that vary
and their bounds. Nothing in it comes from a real patient.
"""

from diffux2ct.data.phantom.anatomy import REGIONS
from diffux2ct.data.phantom.generate import VERSION, generate_dataset
from diffux2ct.data.phantom.make import Phantom, make_phantom
from diffux2ct.data.phantom.ranges import PROBABILITIES, RANGES, ranges_table

__all__ = [
    "PROBABILITIES",
    "RANGES",
    "REGIONS",
    "VERSION",
    "Phantom",
    "generate_dataset",
    "make_phantom",
    "ranges_table",
]
