"""XCiT: Cross-Covariance Image Transformers.

A. El-Nouby, H. Touvron, M. Caron, P. Bojanowski, M. Douze, A. Joulin et al. 2021, arXiv:2106.09681.

Attention mixes channels instead of tokens, by the cross-covariance of keys and queries, so that its cost
is linear in the number of tokens; depth-wise convolutions let neighbouring patches interact; a class token
joins behind these layers and collects the image by class attention.

Family: plain
Differs from the paper: as in the authors' code, the class attention stage changes the patches, too, and
the temperature multiplies the weights' logits instead of dividing them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import pi
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import LateClassModel
from vit_pytorch.layers_v01.attention import Attention, ClassAttention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Encoder, FeedForward, LayerScale, Residual, make_tail
from vit_pytorch.layers_v01.init import init_xavier
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import ConvStem, PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions, Positions
from vit_pytorch.layers_v01.tokens import PrefixTokens

WAVES = 32


class CrossCovariance(nn.Module):
    """softmax(k^T q * temperature) over channels, applied to the values (section 3.2, equation 2).

    Queries and keys are scaled to length 1 over the tokens. The weights of a head are a square of its
    width, whatever the number of tokens.

    Args:
        heads: number of heads, each with a learned temperature that starts at 1.
        dropout: probability with which a weight is dropped in training.
    """

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h n e"], v: Float[Tensor, "b h n e"]
    ) -> Float[Tensor, "b h n e"]:
        """Let every channel of a head attend to all channels of that head."""
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        weights = (q.transpose(-2, -1) @ k * self.temperature).softmax(dim=-1)
        return v @ self.dropout(self.weights(weights)).transpose(-2, -1)


class LocalPatchInteraction(nn.Module):
    """Two depth-wise convolutions with GELU and batch norm between them (section 3.3).

    Args:
        dim: width of a token.
        kernel_size: extent of the convolutions, odd.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"the kernel of the local patch interaction is odd, got {kernel_size}")
        conv = partial(nn.Conv2d, dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.conv_in = conv()
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim)
        self.conv_out = conv()

    def forward(self, x: Float[Tensor, "b n d"], grid: Sequence[int]) -> Float[Tensor, "b n d"]:
        """Mix each token with its neighbours in the grid."""
        x = x.transpose(1, 2).unflatten(2, tuple(grid))
        return self.conv_out(self.norm(self.act(self.conv_in(x)))).flatten(2).transpose(1, 2)


class XCiTBlock(nn.Module):
    """Cross-covariance attention, local patch interaction and a feed-forward, each in a residual.

    Args:
        attention: mixes channels.
        local: mixes neighbouring tokens.
        feedforward: transforms every token by itself.
    """

    def __init__(self, attention: Residual, local: Residual, feedforward: Residual) -> None:
        super().__init__()
        self.attention = attention
        self.local = local
        self.feedforward = feedforward

    def forward(self, x: Float[Tensor, "b n d"], grid: Sequence[int]) -> Float[Tensor, "b n d"]:
        """Apply the three residual branches to the tokens of a grid."""
        return self.feedforward(self.local(self.attention(x), grid))


class ClassBlock(nn.Module):
    """Class attention and a feed-forward for the class token; the patches change, too (section 3.3).

    The patches gain their own normed values, scaled, and are doubled behind the second norm, as in the
    authors' code, which the published weights need.

    Args:
        attention: computes the class token's update.
        feedforward: transforms the class token.
        norm: makes a norm.
        scale: makes a LayerScale.
        tokens_norm: whether the second norm acts on all tokens or on the class token alone.
    """

    def __init__(
        self,
        attention: ClassAttention,
        feedforward: FeedForward,
        *,
        norm: Callable[[], nn.Module],
        scale: Callable[[], nn.Module],
        tokens_norm: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.attention_scale = scale()
        self.feedforward_norm = norm()
        self.feedforward = feedforward
        self.feedforward_scale = scale()
        self.tokens_norm = tokens_norm

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Update all tokens, the class token in front."""
        normed = self.attention_norm(x)
        x = x + self.attention_scale(torch.cat([self.attention(normed), normed[:, 1:]], dim=1))
        if self.tokens_norm:
            x = self.feedforward_norm(x)
        token = x[:, :1] if self.tokens_norm else self.feedforward_norm(x[:, :1])
        token = token + self.feedforward_scale(self.feedforward(token))
        return torch.cat([token, 2 * x[:, 1:]], dim=1)


class FourierPositions(Positions):
    """Fixed waves over the grid, projected to the model's width (see `fourier_table`).

    Places are relative to the extent of the input, so that any size has its positions.

    Args:
        grid: cells along each axis, of the largest input.
        dim: width of a token.
    """

    def __init__(self, grid: Sequence[int], dim: int) -> None:
        super().__init__(grid)
        self.proj = nn.Linear(2 * WAVES, dim)
        init_xavier(self.proj)
        self.register_buffer("table", fourier_table(grid), persistent=False)

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Give the embeddings of a grid's cells."""
        return self.proj(self.table if tuple(grid) == self.grid else fourier_table(grid).to(self.table))


def fourier_table(grid: Sequence[int], *, temperature: float = 10_000.0) -> Float[Tensor, "1 n e"]:
    """Compute sines and cosines of the places of a grid's cells, 32 for the row, then 32 for the column.

    Places go up to 2 pi at the last cell; sine and cosine alternate, and frequencies fall from 1
    geometrically towards 1 / temperature.
    """
    frequency = temperature ** -(torch.arange(0, WAVES, 2, dtype=torch.float64) / WAVES)
    waves = []
    for extent in grid:
        place = torch.arange(1, extent + 1, dtype=torch.float64) / (extent + 1e-6) * 2 * pi
        angle = place[:, None] * frequency
        waves.append(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))
    rows, columns = (len(wave) for wave in waves)
    y, x = waves[0][:, None].expand(-1, columns, -1), waves[1].expand(rows, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1)[None].float()


class XCiT(LateClassModel):
    """The cross-covariance image transformer.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks with cross-covariance attention.
        cls_depth: number of class attention blocks behind them.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        layer_dropout: probability with which a sample skips a residual branch of the cross-covariance
            blocks in training, in [0, 1); the same in every layer.
        local_patch_kernel_size: extent of the local patch interaction's convolutions, odd.
        channels: channels of the input.
        dim_head: width of a head; `dim / heads` unless told.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        eta: what all of LayerScale's factors start at; the paper's models take 1 at depth 12 and 1e-5
            at depth 24.
        tokens_norm: whether the second norm of a class attention block acts on the patches, too; in all
            of the paper's models but the nano ones it does.
        norm_eps: epsilon of the LayerNorms.
        stem: "conv" stacks 3 x 3 convolutions, for patches that are a power of two; "linear" projects
            patches.
        positions: "fourier", "learned" or "none".

    Raises:
        ValueError: where sizes do not divide, or an option is none of those above.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        cls_depth: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        local_patch_kernel_size: int = 3,
        channels: int = 3,
        dim_head: int | None = None,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        eta: float = 1.0,
        tokens_norm: bool = True,
        norm_eps: float = 1e-6,
        stem: Literal["conv", "linear"] = "conv",
        positions: Literal["fourier", "learned", "none"] = "fourier",
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels)
        check_choice("stem", stem, ("conv", "linear"))
        check_choice("positions", positions, ("fourier", "learned", "none"))
        sizes: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head or width_of_head(dim, heads),
            "qkv_bias": qkv_bias,
        }
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)
        feedforward = partial(FeedForward, dim, mlp_dim, dropout=dropout)

        self.patch_embed = (
            ConvStem(grid, channels, dim, project=False)
            if stem == "conv"
            else PatchEmbed(grid, channels, dim)
        )
        self.prefix = PrefixTokens(dim)
        if positions == "fourier":
            self.positions = FourierPositions(grid.shape, dim)
        elif positions == "learned":
            self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> XCiTBlock:
            attend = partial(CrossCovariance, heads, attn_dropout)
            attention = Attention(dim, dropout=dropout, attend=attend, **sizes)
            local = LocalPatchInteraction(dim, local_patch_kernel_size)
            tail = partial(make_tail, dim, layer_scale=eta, drop_path=layer_dropout)
            return XCiTBlock(*(Residual(part, norm(), tail()) for part in (attention, local, feedforward())))

        def class_block(layer: int) -> ClassBlock:
            attend = partial(FusedAttention, attn_dropout)
            attention = ClassAttention(dim, dropout=dropout, attend=attend, **sizes)
            scale = partial(LayerScale, dim, eta)
            return ClassBlock(attention, feedforward(), norm=norm, scale=scale, tokens_norm=tokens_norm)

        self.encoder = Encoder(block, depth=depth)
        self.class_encoder = Encoder(class_block, depth=cls_depth)
        self.norm = norm()
        self.reset_classifier(num_classes)

    def context(self, grid: Sequence[int], kept: Int[Tensor, "b k"] | None = None) -> tuple[Any, ...]:
        """Give the grid, in which the blocks find neighbours.

        Raises:
            ValueError: where patches are missing.
        """
        if kept is not None:
            raise ValueError(
                f"XCiT mixes neighbours and needs all patches, got {kept.shape[1]} that were kept"
            )
        return (grid,)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone.

        These are the class token, the projection of the positions and the temperatures.
        """
        names = {name for name, _ in self.named_parameters()}
        own = {name for name in names if name.endswith("temperature")} | {"positions.proj.weight"}
        return super().no_weight_decay() | (names & own)
