"""Features of slices: the image encoder of MedCLIP-ViT (Wang et al., 2022), for the FID of the DiffuX2CT paper.

Swin-tiny, mean of its tokens, then a linear map from 768 to 512, as in ``medclip/modeling_medclip.py``
(``MedCLIPVisionModelViT``) and not scaled to unit length. Images are made as ``MedCLIPFeatureExtractor`` makes them
(``medclip/dataset.py``): 8-bit grey, black around it up to a square of at least 224, larger squares bicubic down to
224, then (value / 255 - mean) / std, three equal channels. The paper does not say which variant it used, nor how it
made images of slices.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from diffux2ct.command_line import command
from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception.swin2d import SIDE, SwinTiny, relative_positions
from diffux2ct.evaluation.perception.weights import Unavailable, find_weights, load_exactly, read_state_dict

NAME = "MedCLIP-ViT image encoder"
URL = "https://storage.googleapis.com/pytrial/medclip-vit-pretrained.zip"
GET_WEIGHTS = f"run: {command('fetch_weights')} medclip"
MEAN, STD = 0.5862785803043838, 0.27950088968644304
FEATURES = 512

_FILES = ("medclip-vit/pytorch_model.bin", "medclip-vit-pretrained/pytorch_model.bin", "pytorch_model.bin")
_BATCH = 16


class MedClipEncoder(nn.Module):
    """Features [n, 512] of slices. `load` fills it with MedCLIP's weights; a bare ``MedClipEncoder()`` is untrained."""

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        # Names of the official state_dict: vision_model.model.*, vision_model.projection_head.*
        self.model = SwinTiny()
        self.projection_head = nn.Linear(768, FEATURES, bias=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: str | Path | None = None) -> "MedClipEncoder":
        """With MedCLIP's weights from ``weights`` (the file, or its folder) or the folder of ``DIFFUX2CT_WEIGHTS``.

        The file may be the whole model's, of which the text encoder is left aside, or the image encoder's alone.
        `Unavailable` where it is missing, UserError where it is not MedCLIP-ViT's.
        """
        path = find_weights(_FILES, weights)
        if path is None:
            raise Unavailable(NAME, "its weights are not here", GET_WEIGHTS)
        state = _vision_part(read_state_dict(path, str(path)))
        encoder = cls()
        own = encoder.state_dict()
        for name in own:
            if name.endswith("relative_position_index"):
                # A constant, which only older versions of transformers saved.
                if not torch.equal(state.get(name, relative_positions()), relative_positions()):
                    raise UserError(f"{path}: another order of window positions; get the weights of MedCLIP-ViT")
                state[name] = own[name]
        load_exactly(encoder, state, str(path))
        return encoder

    @torch.inference_mode()
    def features(self, slices: Float[Tensor, "n h w"]) -> Float[Tensor, "n 512"]:
        """Features of grey images in [-1, 1] (what lies outside is clipped), first row on top."""
        device = self.projection_head.weight.device
        batches = []
        for start in range(0, len(slices), _BATCH):
            images = torch.stack([encoder_input(image) for image in slices[start : start + _BATCH]])
            images = images.to(device)[:, None].expand(-1, 3, -1, -1)
            batches.append(self.projection_head(self.model(images)))
        return torch.cat(batches) if batches else torch.zeros(0, FEATURES)


def encoder_input(image: Float[Tensor, "h w"]) -> Float[Tensor, "224 224"]:
    """One slice in [-1, 1] as the network sees it, on the CPU."""
    grey = np.round((image.float().cpu().numpy().clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    height, width = grey.shape
    side = max(SIDE, height, width)
    square = Image.new("L", (side, side), 0)
    square.paste(Image.fromarray(grey), ((side - width) // 2, (side - height) // 2))
    if side > SIDE:
        square = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy((np.asarray(square, np.float32) / 255 - MEAN) / STD).float()


def _vision_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "vision_model."
    vision = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return vision or dict(state)
