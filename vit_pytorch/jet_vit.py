"""An Image is Worth 16x16 Words, with a choice of full, linear and window attention in each layer.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

A ViT without class token, whose layers attend fully, linearly (arXiv:2006.16236) with a convolution of the
values whose kernel depends on the image, or within windows (arXiv:2103.14030). A layer with several kinds
draws one at each call in training, as a supernet in which the best ones are sought.

Family: plain
Differs from the paper: patches are pooled by their mean, and the kinds of attention are of the public
vit-pytorch package. As there, patches are normed before and after their projection, and queries, keys and
values have no biases. In evaluation a layer uses the first of its kinds, where that package draws one then,
too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, split_heads
from vit_pytorch.layers.blocks import FeedForward, layer
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.relative import RelativeBias
from vit_pytorch.layers.windows import GroupAttention, windows

KINDS = ("FA", "LA", "WA")


class JetViT(IsotropicModel):
    """The Vision Transformer with full, linear or window attention in each layer.

    With "LA" or "WA", patches cannot be left out.

    Args:
        window_size: side of a window in patches.
        attn_layers: for each layer its kind of attention, "FA" (full), "LA" (linear) or "WA" (in windows), or
            a tuple of kinds; default "FA" in all.

    Raises:
        ValueError: if a kind is unknown, or there are not as many as layers.
    """

    undecayed = IsotropicModel.undecayed + r"|\.bias\.table$"

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
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        window_size: int = 7,
        attn_layers: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        kinds = ["FA"] * depth if attn_layers is None else list(attn_layers)
        if len(kinds) != depth:
            raise ValueError(f"attn_layers must be one for each of {depth} layers, got {len(kinds)}")
        make: dict[str, Callable[[], nn.Module]] = {
            "FA": lambda: Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=False,
                dropout=dropout,
                kernel=partial(FusedAttention, dropout),
            ),
            "LA": lambda: LinearAttention(dim, heads=heads, dim_head=dim_head, dropout=dropout),
            "WA": lambda: window_attention(dim, dim_head=dim_head, dropout=dropout, window=window_size),
        }
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList()
        for found in kinds:
            names = (found,) if isinstance(found, str) else tuple(found)
            for name in names:
                check_choice("attn_layers", name, KINDS)
            attentions = {name: make[name]() for name in names}
            self.blocks.append(ChoiceBlock(dim, attentions, FeedForward(dim, mlp_dim, dropout=dropout)))
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))


class ChoiceBlock(nn.Module):
    """A pre-norm block with several attentions, of which one is drawn at each call in training.

    Args:
        attentions: the attentions by name; in evaluation the first one acts.
    """

    def __init__(self, dim: int, attentions: dict[str, nn.Module], feedforward: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({name: nn.LayerNorm(dim) for name in attentions})
        self.attention = nn.ModuleDict(attentions)
        self.norm2 = nn.LayerNorm(dim)
        self.feedforward = feedforward

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens.

        Raises:
            ValueError: if attention needs the map of all patches, and there is no grid or some are missing.
        """
        names = list(self.attention)
        drawn = int(torch.randint(len(names), ())) if self.training and len(names) > 1 else 0
        norm, attention = self.norm1[names[drawn]], self.attention[names[drawn]]
        if names[drawn] == "FA":
            x = x + attention(norm(x), inputs)
        elif inputs.grid is None or inputs.ids_keep is not None:
            raise ValueError(f"attention {names[drawn]} needs the grid of the patches, and all of them")
        else:
            x = x + attention(norm(x).unflatten(1, inputs.grid)).flatten(1, 2)
        return x + self.feedforward(self.norm2(x))


class LinearAttention(Attention):
    """Linear attention with ReLU, and a convolution of the values whose kernels are computed from their mean.

    Args:
        kernel_size: side of the kernels in patches.
    """

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, dropout: float = 0.0, kernel_size: int = 3
    ) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, qkv_bias=False, dropout=dropout)
        inner = heads * dim_head
        self.kernel_size = kernel_size
        self.to_kernels = nn.Sequential(
            nn.Linear(inner, inner // 4), nn.SiLU(), nn.Linear(inner // 4, inner * kernel_size**2)
        )

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b h w d"]
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell of a map to all cells."""
        grid = x.shape[1:3]
        q, k, v = self.project(x.flatten(1, 2))
        q, k = q.relu(), k.relu()
        attended = q @ (k.mT @ v)
        # queries without a key of their direction get nothing
        total = (q @ k.sum(dim=2)[..., None]).clamp_min(1e-6)
        values = v.transpose(1, 2).flatten(2)
        kernels = self.to_kernels(values.mean(dim=1)).unflatten(
            1, (-1, 1, self.kernel_size, self.kernel_size)
        )
        maps = values.mT.unflatten(2, grid).flatten(0, 1)[None]
        # each channel of each image has a kernel of its own
        convolved = F.conv2d(maps, kernels.flatten(0, 1), padding=self.kernel_size // 2, groups=maps.shape[1])
        convolved = convolved[0].unflatten(0, (len(x), -1)).flatten(2).mT
        return self.merge(attended / total + split_heads(convolved, self.heads)).unflatten(1, grid)


def window_attention(dim: int, *, dim_head: int, dropout: float, window: int) -> GroupAttention:
    """Build attention within windows with relative positions, whose heads share the token dimension.

    Raises:
        ValueError: if `dim_head` does not divide `dim`.
    """
    if dim % dim_head:
        raise ValueError(f"dim must be a multiple of dim_head, got {dim} and {dim_head}")
    heads = dim // dim_head
    attention = Attention(
        dim,
        heads=heads,
        dim_head=dim_head,
        qkv_bias=False,
        out_bias=False,
        dropout=dropout,
        kernel=partial(FusedAttention, dropout),
    )
    size = (window, window)
    return GroupAttention(attention, windows(size), RelativeBias(size, heads), mask_padding=True)
