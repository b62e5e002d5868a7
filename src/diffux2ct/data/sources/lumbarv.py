"""LumbarV, the paper's private lumbar spines: a folder of DICOM series or volume files, one patient each."""

from diffux2ct.data.sources.common import Discovery, Tree
from diffux2ct.data.sources.folder import find_folder


def find_lumbarv(tree: Tree) -> Discovery:
    """Any folder: its layout was never published, so it is read as ``find_folder`` reads one."""
    return find_folder(tree)
