"""What models in stages share: size checks, pooling, intermediate maps, classifiers.

Maps travel with their channels last, as linear layers, norms and attention need them, and leave the model
with their channels first; both are views of the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.layers.blocks import is_tracing, layer
from vit_pytorch.layers.conv import pool_map


class Stage(nn.Module):
    """Downsample the map, then apply blocks.

    Args:
        down: returns the map of this stage from that of the one before.
    """

    def __init__(self, down: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)

    @layer
    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the map of this stage."""
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class HierarchicalModel(VisionModel):
    """Base class of models in stages, each of which has a map of its own.

    The constructor of a subclass calls this one, then sets `stages` and whatever else of the attributes below
    it has, and calls `reset_classifier` last. `forward_features` is the subclass's own.

    Attributes:
        dims: channels of each stage.
        strides: pixels from one cell to the next in each stage.
        size_multiple: what the height and the width of an input must be multiples of.
        min_size: the least height and width of an input.
        down_in_first_block: what precedes the blocks of a stage counts as part of the first one for
            layer-wise learning rates, instead of as a layer of its own.
        stem_is_layer: the stem counts as a layer below what precedes the blocks of the first stage, instead
            of together with it.
        stage_is_layer: a stage counts as one layer for layer-wise learning rates, instead of each block.
        any_size: an input may be larger than `image_size`, which is then only the customary one.
        num_prefix_tokens: number of tokens before the last map's cells in the output of `forward_features`.
        stem: acts on the image, its channels last, before the stages.
        stages: return the map of each stage from that of the one before.
        norm: acts on the last map.
    """

    stages: nn.ModuleList
    pool = "mean"
    returns_maps = True
    down_in_first_block: ClassVar[bool] = False
    stem_is_layer: ClassVar[bool] = False
    stage_is_layer: ClassVar[bool] = False
    undecayed = r"\.(table|positions\.conv\.weight|class_token)$"

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        num_classes: int,
        dims: Sequence[int],
        strides: Sequence[int],
        channels: int = 3,
        size_multiple: tuple[int, int] = (1, 1),
        min_size: tuple[int, int] = (1, 1),
        any_size: bool = True,
    ) -> None:
        super().__init__(
            num_classes=num_classes, num_features=dims[-1], channels=channels, image_size=image_size
        )
        self.dims = tuple(dims)
        self.strides = tuple(strides)
        self.size_multiple = size_multiple
        self.min_size = min_size
        self.any_size = any_size
        self.num_prefix_tokens = 0
        self.stem: nn.Module = nn.Identity()
        self.stages = nn.ModuleList()
        self.norm: nn.Module = nn.Identity()
        self.fc_norm = nn.Identity()
        self.pre_logits = nn.Identity()
        self.head = nn.Identity()
        self.check_size(image_size)
        self.default_cfg["pool_size"] = tuple(ceil(side / self.strides[-1]) for side in image_size)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the map of each stage is: module, num_chs, reduction (stride in pixels)."""
        return [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": stride}
            for i, (dim, stride) in enumerate(zip(self.dims, self.strides, strict=True))
        ]

    def check_size(self, size: Sequence[int]) -> None:
        """Check the size of an input.

        Raises:
            ValueError: if the input is too small or too large, or not the multiple that the stages need.
        """
        if any(s < least for s, least in zip(size, self.min_size, strict=True)):
            least = tuple(map(max, self.min_size, self.size_multiple))
            raise ValueError(f"an image must be at least {least}, got image size {tuple(size)}")
        if not self.any_size and any(s > most for s, most in zip(size, self.image_size, strict=True)):
            raise ValueError(f"image size must be at most {self.image_size}, got {tuple(size)}")
        if any(s % m for s, m in zip(size, self.size_multiple, strict=True)):
            raise ValueError(f"image size must be a multiple of {self.size_multiple}, got {tuple(size)}")

    def embed(self, images: Float[Tensor, "b c h w"]) -> Any:
        """Return what enters the first stage, channels last."""
        self.check_images(images)
        if not is_tracing(images):
            self.check_size(images.shape[2:])
        # Channels come last in memory, too: convolutions are faster so, and the maps after them contiguous.
        return self.stem(images.permute(0, 2, 3, 1).contiguous())

    def pool_features(self, features: Tensor) -> Float[Tensor, "b d"]:
        """Return one vector per image: the mean of the map, or of the prefix tokens, if there are any."""
        if self.num_prefix_tokens:
            return features[:, : self.num_prefix_tokens].mean(dim=1)
        return pool_map(features)

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the cells and the prefix tokens in the output of a stage, and the map's rows and columns."""
        x, prefix = self.split_prefix(output, layer, size)
        if norm and self.takes_norm(layer):
            x = self.norm(x)
            # The final norm may change the number of channels.
            prefix = self.norm(prefix) if prefix.shape[1] else x.new_empty(x.shape[0], 0, x.shape[3])
        return x.flatten(1, 2), prefix, x.shape[1:3]

    def takes_norm(self, stage: int) -> bool:
        """Return whether the final norm, which has the last stage's dimension, is for maps of a stage."""
        return stage == len(self.stages) - 1

    def split_prefix(
        self, output: Tensor, stage: int, size: Sequence[int]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b k d"]]:
        """Return the map in the output of a stage, and the tokens before it, as a rule none.

        Args:
            output: what the stage returned.
            stage: index of the stage.
            size: height and width of the images.
        """
        return output, output.new_empty(output.shape[0], 0, output.shape[3])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the coarse ones by stage."""
        coarse = coarse or self.stage_is_layer
        block = (r"^stages\.(\d+)\.blocks\.(\d+)", None)
        stage = (r"^stages\.(\d+)\.", (0,) if self.down_in_first_block and not coarse else None)
        return {
            "stem": r"^stem\." if self.stem_is_layer else r"^(?:stem|stages\.0\.down)\.",
            "blocks": [*([] if coarse else [block]), stage, (r"^norm\.", (99999,))],
        }
