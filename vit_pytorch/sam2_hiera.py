"""SAM 2: Segment Anything in Images and Videos.

N. Ravi, V. Gabeur, Y.-T. Hu et al. 2024, arXiv:2408.00714.

Its image encoder, a Hiera for large images: attention is within windows in all four stages, of all cells in
three blocks, and positions are absolute window positions (D. Bolya et al. 2023, arXiv:2311.05613), so that
images have any size.

Family: hierarchical
Differs from the paper: the image encoder alone, without the pyramid of features that follows it, the memory,
the encoder of prompts and the decoder of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import lcm

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hiera import STRIDE, MaskUnitPositions, PositionedStem, mask_unit_block
from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import heads_per_stage
from vit_pytorch.layers.blocks import Block, drop_path_rates
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair


class SAM2Hiera(HierarchicalModel):
    """SAM 2's image encoder.

    Args:
        image_size: the customary input, one number or (height, width) in pixels, multiples of a window of the
            first stage and of a cell of the last.
        dim: channels of the first stage, which double from stage to stage, or of each.
        depth: blocks of each stage.
        heads: heads of the first stage, which double from stage to stage, or of each.
        window_size: side of the windows of each stage, in cells; zeros fill maps up to whole windows. The
            first block of a stage attends within windows of the stage before, in which the maximum of
            2 x 2 queries is taken.
        global_layers: indices of the blocks that attend to all cells, counted through all stages.
        position_grid: rows and columns of learned positions that are stretched over the map, in addition to
            those of the cells of a window of the first stage.
        mlp_ratio: hidden dimension of the feed-forward by channels.

    Raises:
        ValueError: if heads do not share the channels, there are more or fewer windows than stages, a window
            whose queries are pooled is odd, or a layer that attends to all cells does not exist.
    """

    undecayed = r"^stem\.positions\."

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int | Sequence[int] = 1024,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (2, 3, 16, 3),
        heads: int | Sequence[int] = 1,
        channels: int = 3,
        window_size: Sequence[int] = (8, 4, 14, 7),
        global_layers: Sequence[int] = (12, 16, 20),
        position_grid: int | Sequence[int] = 7,
        mlp_ratio: int | float = 4,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, per_stage("heads", heads, count))
        sides = per_stage("window_size", window_size, count)
        if any(side % 2 for side in sides[:-1]):
            raise ValueError(f"window_size must be even in all stages but the last, got {sides}")
        if any(layer >= sum(depth) for layer in global_layers):
            raise ValueError(f"global_layers must be below depth {sum(depth)}, got {tuple(global_layers)}")
        multiple = STRIDE * lcm(sides[0], 2 ** (count - 1))
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[STRIDE * 2**stage for stage in range(count)],
            channels=channels,
            size_multiple=(multiple, multiple),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        # The authors stretch by PyTorch's cubic kernel, not Pillow's.
        positions = MaskUnitPositions(pair(position_grid), sides[0], dims[0], antialias=False)
        self.stem = PositionedStem(channels, dims[0], positions)
        layer = 0
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            blocks: list[Block] = []
            for index, rate in enumerate(rates):
                pools = stage > 0 and index == 0
                # The first block of a stage attends on the map of the stage before.
                place = stage - 1 if pools else stage
                blocks.append(
                    mask_unit_block(
                        dims[place],
                        dims[stage],
                        heads=all_heads[stage],
                        unit=None if layer in global_layers else sides[place],
                        pool=pools,
                        mlp_ratio=mlp_ratio,
                        dropout=dropout,
                        norm=norm,
                        layer_scale=layer_scale,
                        drop_path=rate,
                    )
                )
                layer += 1
            self.stages.append(Stage(nn.Identity(), blocks))
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.fc_norm = norm(dims[-1])
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; the norm acts on its mean."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)
