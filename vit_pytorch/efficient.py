"""A ViT around any encoder of tokens.

Patches, positions, class token and head are those of the plain ViT; between them acts a module that is passed
in, from (b, n, d) to (b, n, d): as a rule an encoder of another library whose attention costs less than
quadratic in the number of tokens, or a list of blocks as `layers.blocks.plain_blocks` builds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import is_tracing, layer
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.legacy import flat_options


class ViT(IsotropicModel):
    """The Vision Transformer with the encoder of your choice.

    No configuration file can hold a module, so `save_pretrained` raises an error; save the state dict.
    A list of blocks has features between them; any other module counts as one block.

    Args:
        dim: token dimension; the same as the transformer's.
        transformer: computes tokens from tokens, (b, n, d) both; or an `nn.ModuleList` of blocks. It is not
            copied.
        norm_eps: epsilon of the LayerNorm after the transformer.
        final_norm: have that LayerNorm; a transformer may end in one of its own.
        num_registers: number of register tokens, which have no position.

    Raises:
        ValueError: if sizes do not divide, or the transformer is not a module.
    """

    @flat_options
    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        transformer: nn.Module,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        emb_dropout: float = 0.0,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        class_token: bool = False,
        num_registers: int = 0,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = class_token or pool == "cls"
        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        if isinstance(transformer, nn.ModuleList):
            self.blocks = transformer
        else:
            self.blocks = nn.ModuleList([TransformerBlock(transformer)])
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if final_norm else nn.Identity()
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, prefix tokens first."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class TransformerBlock(nn.Module):
    """A transformer of another library as one block."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Apply the transformer, which takes only tokens.

        Raises:
            ValueError: if it does not return one token of the same dimension for each.
        """
        y: Any = self.transformer(x)
        if not is_tracing(x) and (not isinstance(y, Tensor) or y.shape != x.shape):
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"the transformer must return tokens of shape {tuple(x.shape)}, got {got}")
        return y
