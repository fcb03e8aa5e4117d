"""A ViT around any encoder of tokens.

Patches, positions, class token and head are those of the plain ViT; what stands between them is a module
that is passed in, from (b, n, d) to (b, n, d): an encoder of another library, as a rule one whose attention
costs less than quadratic in the number of tokens, or `layers.blocks.Encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.blocks import Encoder
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens


class ViT(IsotropicModel):
    """The Vision Transformer with the encoder of your choice.

    A module is nothing that a configuration file can hold: `save_pretrained` refuses; save the state dict.
    Features between the blocks are those of an `Encoder`; any other module counts as one block.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token; the same as the transformer's.
        transformer: gives tokens from tokens, (b, n, d) both. It is used as it is, not copied.
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        channels: channels of the input.
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        norm_eps: epsilon of the LayerNorm behind the transformer.
        final_norm: whether there is that LayerNorm; a transformer may end in one of its own.
        class_token: whether there is a class token; None means where `pool` is "cls".
        num_registers: number of register tokens, which have no position.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
    """

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
        class_token: bool | None = None,
        num_registers: int = 0,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        if not isinstance(transformer, nn.Module):
            raise ValueError(f"transformer is a module, got {type(transformer).__name__}")
        check_choice("pool", pool, ("cls", "mean"))
        class_token = has_class_token(pool, class_token)
        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        if isinstance(transformer, Encoder):
            self.encoder = transformer
        else:
            self.encoder = Encoder(lambda layer: transformer, depth=1)
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if final_norm else nn.Identity()
        self.reset_classifier(num_classes)

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        kept: Int[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Run the transformer, which knows of no grid, and the final norm.

        Raises:
            ValueError: where the transformer does not give one token of the same width for each.
        """
        encoded: Any = self.encoder(tokens)
        if not isinstance(encoded, Tensor) or encoded.shape != tokens.shape:
            got = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
            raise ValueError(f"the transformer gives tokens of shape {tuple(tokens.shape)}, got {got}")
        return self.norm(encoded)
