"""How models start: what is learned for a place is neither lost in the tokens it meets nor drowns them."""

import torch
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.layers.positions import Positions


def test_learned_positions_are_as_large_as_tokens(model: VisionModel, images: Tensor):
    ratios = {}

    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Tokens of SepViT's windows are nothing but learned.
        if inputs[0].any():
            ratios[type(module).__name__] = ((output - inputs[0]).std() / inputs[0].std()).item()

    for module in model.modules():
        if isinstance(module, Positions) and list(module.parameters()):
            module.register_forward_hook(compare)
    with torch.no_grad():
        model.eval()(images)
    assert {name: ratio for name, ratio in ratios.items() if not 0.1 < ratio < 3} == {}
