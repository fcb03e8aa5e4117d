"""Transformer in Transformer.

K. Han, A. Xiao, E. Wu, J. Guo, C. Xu, Y. Wang 2021, arXiv:2103.00112.

A patch is a sentence whose words are smaller patches. In every block, an inner transformer relates the words
of each sentence, a projection of all its words is added to the sentence, and an outer transformer relates
the sentences and the class token.

Family: multi-scale
Differs from the paper: as in the authors' code, words come from a 7 x 7 convolution, and there are norms
before and after the projection of words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.layers.attention import head_dim
from vit_pytorch.layers.blocks import drop_path_rate, plain_blocks
from vit_pytorch.layers.init import init_embeddings, init_xavier
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.windows import windows

# Sentences, the class token first, and the words of all sentences of a batch.
Text = tuple[Float[Tensor, "b n d"], Float[Tensor, "s m e"]]
# Side of the kernel that embeds words.
KERNEL = 7


class TNT(VisionModel):
    """The transformer in transformer.

    Args:
        dim: dimension of a sentence.
        heads: number of heads of the outer transformer.
        mlp_dim: hidden dimension of its feed-forward.
        inner_dim: dimension of a word.
        inner_heads: number of heads of the inner transformer.
        inner_mlp_dim: hidden dimension of its feed-forward.
        word_size: pixels from one word to the next; divides the patch.
        variant: "authors", or "timm" for its first models (`tnt_s_legacy_patch16_224`): words come from a
            convolution of the whole image instead of each patch by itself, and blocks norm each word instead
            of all words of a sentence, and not the sentence that they are projected to.

    Raises:
        ValueError: if sizes do not divide.
    """

    pool = "cls"
    num_prefix_tokens = 1
    undecayed = r"^(prefix\.class_token|positions\.table|words\.positions)$"

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
        inner_dim: int,
        inner_heads: int,
        inner_mlp_dim: int,
        word_size: int = 4,
        variant: Literal["authors", "timm"] = "authors",
        channels: int = 3,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        check_choice("variant", variant, ("authors", "timm"))
        grid = PatchGrid(pair(image_size), pair(patch_size))
        if any(side % word_size for side in grid.patch):
            raise ValueError(f"patch size must be a multiple of word_size, got {grid.patch} and {word_size}")
        super().__init__(num_classes=num_classes, num_features=dim, channels=channels, image_size=grid.size)
        self.grid = grid
        authors = variant == "authors"
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.words = WordEmbed(grid, channels, inner_dim, word_size=word_size, apart=authors)
        sentences = partial(Sentences, self.words.count, inner_dim, dim, norm=norm)
        self.sentences = sentences()
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)

        rates = [drop_path_rate(drop_path, index, depth) for index in range(depth)]
        blocks = partial(
            plain_blocks,
            depth=depth,
            dropout=dropout,
            attn_dropout=attn_dropout,
            drop_path=rates,
            qkv_bias=qkv_bias,
            norm=norm,
        )
        inner = blocks(
            inner_dim, heads=inner_heads, dim_head=head_dim(inner_dim, inner_heads), mlp_dim=inner_mlp_dim
        )
        outer = blocks(dim, heads=heads, dim_head=head_dim(dim, heads), mlp_dim=mlp_dim)
        adds = (sentences(bias=False) if authors else sentences(by_word=True) for _ in range(depth))
        self.blocks = nn.ModuleList(map(TNTBlock, inner, adds, outer))
        self.norm = norm(dim)
        self.fc_norm = nn.Identity()
        self.pre_logits = nn.Identity()
        self.head = nn.Identity()
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels)."""
        return [
            {
                "module": f"blocks.{layer}.outer",
                "num_chs": self.num_features,
                "reduction": max(self.grid.patch),
            }
            for layer in range(len(self.blocks))
        ]

    def embed(self, images: Float[Tensor, "b c h w"]) -> Text:
        """Return the sentences that enter the blocks, the class token first, and the words."""
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        words = self.words(images)
        sentences = self.prefix(self.sentences(words.unflatten(0, (-1, prod(grid)))))
        return self.dropout(self.positions(sentences, prefix=1, grid=grid)), words

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the class token and the sentences after the final norm."""
        sentences, words = self.embed(images)
        for block in self.blocks:
            sentences, words = block(sentences, words)
        return self.norm(sentences)

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b 1 d"], Sequence[int]]:
        """Return the sentences and the class token in the output of a block, and the sentences' grid."""
        x = self.norm(output) if norm else output
        return x[:, 1:], x[:, :1], self.grid.fit(size)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^(?:words|sentences|prefix|positions)\.",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }


class WordEmbed(nn.Module):
    """Embed the words of each patch by a convolution, and add their positions in the patch.

    Args:
        word_size: pixels from one word to the next.
        apart: convolve each patch by itself, padded by zeros, instead of the whole image.

    Attributes:
        count: words of a patch.
    """

    def __init__(self, grid: PatchGrid, channels: int, dim: int, *, word_size: int, apart: bool) -> None:
        super().__init__()
        self.patch = grid.patch
        cells = [side // word_size for side in grid.patch]
        self.groups = windows(grid.patch if apart else cells)
        self.apart = apart
        self.count = prod(cells)
        self.conv = nn.Conv2d(channels, dim, KERNEL, word_size, KERNEL // 2)
        self.positions = nn.Parameter(torch.empty(1, self.count, dim))
        init_embeddings(self.positions)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "s m e"]:
        """Return the words of all patches, those of the first image first."""
        if self.apart:
            patches = self.groups.split(images.permute(0, 2, 3, 1)).unflatten(1, self.patch)
            words = self.conv(patches.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        else:
            words = self.groups.split(self.conv(images).permute(0, 2, 3, 1))
        return words + self.positions


class Sentences(nn.Module):
    """Project the words of each sentence, one after the other, to its dimension (equation 5).

    Args:
        words: number of words of a sentence.
        norm: builds norms.
        bias: use a bias for the projection.
        by_word: norm each word instead of all words of a sentence, and not the sentence.
    """

    def __init__(
        self,
        words: int,
        inner_dim: int,
        dim: int,
        *,
        norm: Callable[[int], nn.Module],
        bias: bool = True,
        by_word: bool = False,
    ) -> None:
        super().__init__()
        self.by_word = by_word
        self.norm1 = norm(inner_dim if by_word else words * inner_dim)
        self.proj = nn.Linear(words * inner_dim, dim, bias=bias)
        self.norm2 = nn.Identity() if by_word else norm(dim)
        init_xavier(self.proj)

    def forward(self, words: Float[Tensor, "b n m e"]) -> Float[Tensor, "b n d"]:
        """Return sentences of words."""
        normed = self.norm1(words).flatten(2) if self.by_word else self.norm1(words.flatten(2))
        return self.norm2(self.proj(normed))


class TNTBlock(nn.Module):
    """An inner block on words, their projection to sentences, and an outer block on sentences (figure 1).

    Args:
        inner: relates the words of each sentence.
        add: returns what is added to sentences, of their words.
        outer: relates the sentences and the class token.
    """

    def __init__(self, inner: nn.Module, add: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.add = add
        self.outer = outer

    def forward(self, sentences: Float[Tensor, "b n d"], words: Float[Tensor, "s m e"]) -> Text:
        """Transform sentences and words."""
        words = self.inner(words)
        added = self.add(words.unflatten(0, (sentences.shape[0], -1)))
        sentences = torch.cat([sentences[:, :1], sentences[:, 1:] + added], dim=1)
        return self.outer(sentences), words
