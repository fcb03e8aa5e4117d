"""Segment Anything.

A. Kirillov, E. Mintun, N. Ravi et al. 2023, arXiv:2304.02643.

The image encoder: a plain transformer for large images (Y. Li, H. Mao, R. Girshick, K. He 2022,
arXiv:2203.16527), most of whose blocks attend within windows, and a few among all patches; the products of
queries with embeddings of the offsets along each axis are added to the scores. A neck of two convolutions
turns the last map into the image's embedding.

Family: plain
Differs from the paper: the image encoder alone, without prompts and masks; a classifier of the mean of the
embedding is added, as in timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import DecomposedPositions, LearnedPositions
from vit_pytorch.layers.windows import WHOLE, crop_map, pad_map, windows

# of the neck's norms, whatever that of the blocks
NECK_EPS = 1e-6


class SAMViT(IsotropicModel):
    """The image encoder of Segment Anything.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any multiple of the patch
            is accepted, over which positions are stretched.
        window_size: side of the windows in patches.
        global_layers: indices of the blocks that attend among all patches.
        neck_dim: channels of the embedding, which the neck's convolutions compute; None for a neck that is a
            norm alone.
        positions: what is added to the patches: "learned", or "none".

    Raises:
        ValueError: if an index is outside the model.
    """

    needs_all = "parts a map"
    pool = "mean"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        dim_head: int | None = None,
        window_size: int = 14,
        global_layers: Sequence[int] = (2, 5, 8, 11),
        neck_dim: int | None = 256,
        positions: Literal["learned", "none"] = "learned",
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size), dynamic=True)
        width = dim if neck_dim is None else neck_dim
        super().__init__(grid=grid, num_classes=num_classes, dim=width, channels=channels, pool="mean")
        check_choice("positions", positions, ("learned", "none"))
        if any(not 0 <= index < depth for index in global_layers):
            raise ValueError(f"global_layers must be in [0, {depth - 1}], got {tuple(global_layers)}")
        self.dim = dim
        dim_head = head_dim(dim, heads) if dim_head is None else dim_head

        self.patch_embed = PatchEmbed(grid, channels, dim)
        if positions == "learned":
            self.positions = LearnedPositions(grid.shape, dim)
            self.positions.interpolates = True
        self.dropout = nn.Dropout(emb_dropout)
        for index in range(depth):
            window = None if index in global_layers else window_size
            attention = Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                dropout=dropout,
                position=DecomposedPositions(grid.shape if window is None else (window, window), dim_head),
                kernel=partial(FusedAttention, attn_dropout),
            )
            self.blocks.append(
                Block(
                    dim,
                    MapAttention(attention, window),
                    FeedForward(dim, mlp_dim, dropout=dropout),
                    norm=partial(nn.LayerNorm, eps=norm_eps),
                    drop_path=drop_path_rate(drop_path, index, depth),
                )
            )
        self.neck = nn.LayerNorm(dim, eps=NECK_EPS) if neck_dim is None else Neck(dim, neck_dim)
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the map of each block is: module, num_chs, reduction (stride in pixels), and by axis."""
        return [{**info, "num_chs": self.dim} for info in super().feature_info]

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n e"]:
        """Return the embedding of each patch; `forward_intermediates` with `norm=True` gives them as a
        map."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Int[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b n e"]:
        """Apply the blocks and the neck; see `IsotropicModel.encode`.

        Raises:
            ValueError: if patches are missing.
        """
        grid = self.grid.shape if grid is None else tuple(grid)
        inputs = self.block_inputs(grid, ids_keep)
        x = tokens.unflatten(1, grid)
        for block in self.blocks:
            x = block(x, inputs)
        return self.neck(x).flatten(1, 2)

    def split_output(
        self, output: Float[Tensor, "b h w d"], layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n e"], Float[Tensor, "b 0 e"], Sequence[int]]:
        """Return the patches in the output of a block, and their grid; the neck is its norm."""
        x = self.neck(output) if norm else output
        return x.flatten(1, 2), x.new_empty(x.shape[0], 0, x.shape[3]), self.grid.fit(size)

    def layer_tokens(self, output: Float[Tensor, "b h w d"]) -> Float[Tensor, "b n d"]:
        """Return the tokens in the output of a block."""
        return output.flatten(1, 2)


class MapAttention(nn.Module):
    """Attention within windows of a map, or among all its cells (arXiv:2203.16527, section 3).

    A map is filled up by zeros to whole windows, which are seen.

    Args:
        attention: its positions know the grid of a window.
        window: side of the windows in cells; None for all cells.
    """

    def __init__(self, attention: Attention, window: int | None) -> None:
        super().__init__()
        self.attention = attention
        self.partition = WHOLE if window is None else windows((window, window))

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to the cells of its window."""
        padded = pad_map(x, self.partition.multiple)
        q, k, v = self.attention.project(self.partition.split(padded))
        window = BlockInputs(self.partition.cells(padded.shape[1:3]))
        mixed = self.attention.merge(self.attention.attend(q, k, v, window))
        return crop_map(self.partition.merge(mixed, padded.shape[1:3]), x.shape[1:3])


class Neck(nn.Module):
    """A linear layer and a 3 x 3 convolution without biases, each before a norm (arXiv:2304.02643, A)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, out_dim, bias=False)
        self.norm1 = nn.LayerNorm(out_dim, eps=NECK_EPS)
        self.conv = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim, eps=NECK_EPS)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w e"]:
        """Return the embedding of a map."""
        x = self.norm1(self.project(x)).permute(0, 3, 1, 2)
        return self.norm2(self.conv(x).permute(0, 2, 3, 1))
