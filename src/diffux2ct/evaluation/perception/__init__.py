"""Pretrained networks whose features describe a set of reconstructions: a 3D CT encoder and MedCLIP's image encoder."""

from diffux2ct.evaluation.perception.ct_encoder import CtEncoder
from diffux2ct.evaluation.perception.medclip import MedClipEncoder

__all__ = ["CtEncoder", "MedClipEncoder"]
