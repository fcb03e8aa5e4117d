"""Token Merging: Your ViT But Faster.

D. Bolya, C.-Y. Fu, X. Dai, P. Zhang, C. Feichtenhofer, J. Hoffman 2022, arXiv:2210.09461.

Between attention and feed-forward, each block of a trained ViT merges the pairs of patches whose keys are
most alike into one token, their mean. A token that stands for several patches counts as several in the
attention of the blocks that follow. Nothing is learned for it, and every patch keeps the token that it went
into.

Family: sampling
Differs from the paper: nothing. In models without a class token, the authors' code puts the tokens that were
not merged in the order of their likeness; here they keep their own, as with a class token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.distill import DistillableViT
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.layers.attention import Attention, BlockInputs, Keys
from vit_pytorch.layers.blocks import Block, fx_leaf, static_size
from vit_pytorch.layers.options import check_choice
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.vit import ViT

BASES: dict[str, type[IsotropicModel]] = {base.__name__: base for base in (ViT, SimpleViT, DistillableViT)}


class Pairs(NamedTuple):
    """Which patches are merged: every second one, the first set, looks for its like in the second.

    Args:
        kept: of the first set, places of those that stay.
        gone: of the first set, places of those that are merged into one of the second.
        into: places of these in the second set.
    """

    kept: Int[Tensor, "b k"]
    gone: Int[Tensor, "b r"]
    into: Int[Tensor, "b r"]


class ToMeViT(VisionModel):
    """A plain ViT whose blocks merge the patches that are most alike.

    It has the parameters of its base under ``vit.``, and computes what the base computes where nothing is
    merged. Its features are those of all patches: those that were merged share a token.

    Args:
        base: arguments of the base, and under "architecture" its class if that is not `ViT`: a `SimpleViT`
            or a `DistillableViT`.
        merged: by how many patches each block has fewer (the paper's r), or one number for each block; a
            block merges half of them at most.
        proportional: a token counts in attention for as many patches as it stands for (equation 1), as
            models need that were trained without merging; default True.

    Raises:
        ValueError: if the base is not a plain pre-norm model without positions inside attention, or the
            numbers do not fit its depth.
    """

    def __init__(
        self, *, base: Mapping[str, Any], merged: int | Sequence[int] = 8, proportional: bool = True
    ) -> None:
        arguments = dict(base)
        architecture = arguments.pop("architecture", ViT.__name__)
        check_choice("architecture", architecture, BASES)
        vit = BASES[architecture](**arguments)
        check_base(vit)
        super().__init__(
            num_classes=vit.num_classes,
            num_features=vit.num_features,
            channels=vit.channels,
            image_size=vit.image_size,
        )
        depth = len(vit.blocks)
        rates = (merged,) * depth if isinstance(merged, int) else tuple(merged)
        if len(rates) != depth:
            raise ValueError(
                f"merged must be a number of patches, or one for each of {depth} blocks, got {merged}"
            )
        self.vit = vit
        self.merged = rates
        self.proportional = proportional

    @classmethod
    def around(cls, vit: VisionModel, **options: Any) -> ToMeViT:
        """Build the model around an existing base, which becomes part of it and is not copied.

        Args:
            options: ``merged`` and ``proportional``.

        Raises:
            ValueError: as the class does.
        """
        if not (isinstance(vit, IsotropicModel) and type(vit) in BASES.values()):
            names = ", ".join(BASES)
            raise ValueError(f"the base of a ToMeViT must be one of {names}, got {type(vit).__name__}")
        with torch.device("meta"):
            model = cls(base={"architecture": type(vit).__name__, **vit.config}, **options)
        model.vit = vit
        model.default_cfg = dict(vit.default_cfg)
        return model.train(vit.training)

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, prefix tokens first; patches that were merged share one."""
        tokens, groups = self.merge(images)
        prefix = self.num_prefix_tokens
        places = groups[:, :, None].expand(-1, -1, tokens.shape[2])
        return torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, places)], dim=1)

    def merge(self, images: Float[Tensor, "b c *size"]) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b p"]]:
        """Apply the blocks and the final norm, merging on the way (section 3).

        Returns:
            The tokens that are left, prefix tokens first; and for each patch the place of its token behind
            these.
        """
        vit, prefix = self.vit, self.num_prefix_tokens
        tokens = vit.embed(images)
        grid = vit.grid.fit(images.shape[2:])
        inputs = vit.block_inputs(grid)
        sizes, groups = start(tokens, prefix)
        for block, count in zip(vit.blocks, self.plan(prod(grid)), strict=True):
            keys, tokens = attend(block, tokens, inputs)
            if count:
                pairs = match(keys, count, prefix)
                tokens, sizes = merge_means(tokens, sizes, pairs, prefix)
                groups = follow(groups, pairs, prefix)
                if self.proportional:
                    inputs = replace(inputs, mask=sizes.log()[:, None, None, :, 0])
            tokens = transform(block, tokens)
        return vit.norm(tokens), groups

    def plan(self, patches: int) -> list[int]:
        """Return the number of pairs that each block merges.

        Args:
            patches: number of patches that enter the first block.
        """
        (patches,) = static_size([patches])
        counts = []
        for most in self.merged:
            counts.append(min(most, patches // 2))
            patches -= counts[-1]
        return counts

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k ..."]:
        """Pool tokens and classify them, as the base does."""
        return self.vit.forward_head(features, pre_logits)

    @property
    def pool(self) -> str:  # type: ignore[override]
        """How the base pools."""
        return self.vit.pool

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        """Number of tokens before the patches, which are never merged."""
        return self.vit.num_prefix_tokens

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: none, since what is between the blocks is no map."""
        return []

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Raise a `ValueError`, since there are no intermediate features."""
        raise ValueError("between the blocks of a ToMeViT there are no maps; the base has them")

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the logits; the identity if there is none."""
        return self.vit.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier of the base by a new one; see `VisionModel.reset_classifier`."""
        self.vit.reset_classifier(num_classes, global_pool)
        self.num_classes = num_classes
        self._record(base={**self.config["base"], **self.vit.config}, num_classes=num_classes)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of more than one axis without weight decay: tokens and positions."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as the base does."""
        return {
            "stem": r"^vit\.(?:prefix|positions|patch_embed|pre_norm)\.",
            "blocks": [(r"^vit\.blocks\.(\d+)", None), (r"^vit\.norm\.", (99999,))],
        }


def merging(model: VisionModel, count: int) -> VisionModel:
    """Return a model that shares another's parameters and merges so many patches in each block; for 0 the
    other one itself.

    Raises:
        ValueError: if its tokens cannot be merged, or the number is negative or no integer.
    """
    check_integer("merge_tokens", count, least=0)
    return ToMeViT.around(model, merged=count) if count else model


def check_base(vit: IsotropicModel) -> None:
    """Check that the tokens of a model can be merged.

    Raises:
        ValueError: if its blocks are not plain ones, or its attention knows the patches' places.
    """
    inputs = vit.block_inputs(vit.grid.shape)
    shared = inputs.mask is not None or inputs.rotation is not None
    for block in vit.blocks:
        part = getattr(block, "attention", None)
        plain = type(block) is Block and type(part) is Attention
        if plain and not shared and part.position is None and part.value_mix is None:  # type: ignore[union-attr]
            continue
        raise ValueError(
            "tokens are merged in plain pre-norm blocks, without positions (relative, rotary) or another "
            f"layer's values inside attention, which merged patches do not have, got {vit.config}"
        )


def attend(
    block: nn.Module, tokens: Float[Tensor, "b n d"], inputs: BlockInputs
) -> tuple[Keys, Float[Tensor, "b n d"]]:
    """Apply the first half of a block (see `Block`), and return the keys of its attention, too."""
    part: Any = block
    q, k, v = part.attention.project(part.norm1(tokens))
    mixed = part.attention.merge(part.attention.attend(q, k, v, inputs))
    return k, tokens + part.drop_path(part.scale1(mixed))


def transform(block: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Apply the second half of a block."""
    part: Any = block
    return tokens + part.drop_path(part.scale2(part.feedforward(part.norm2(tokens))))


@fx_leaf
def start(tokens: Float[Tensor, "b n d"], prefix: int) -> tuple[Float[Tensor, "b n 1"], Int[Tensor, "b p"]]:
    """Return the sizes of tokens, all 1, and the places of the patches among them."""
    places = torch.arange(tokens.shape[1] - prefix, device=tokens.device)
    return torch.ones_like(tokens[:, :, :1]), places.expand(tokens.shape[0], -1)


@fx_leaf
def match(keys: Keys, count: int, prefix: int) -> Pairs:
    """Find the pairs that are most alike (bipartite soft matching, section 3).

    Tokens are counted from the first prefix token on; the even ones are the first set. Prefix tokens are in
    neither. No gradient flows.

    Args:
        keys: of all tokens; their mean over the heads is compared, by its cosine.
        count: number of pairs; half of the patches at most.
    """
    metric = F.normalize(keys.detach().float().mean(dim=1), dim=-1)
    first, second = halves(metric, prefix)
    best, place = (first @ second.mT).max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    gone, kept = order[:, :count], order[:, count:].sort(dim=-1).values
    return Pairs(kept, gone, place.gather(1, gone))


def halves(
    tokens: Float[Tensor, "b n d"], prefix: int
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b l d"]]:
    """Return every second patch, and the others."""
    patches, odd = tokens[:, prefix:], prefix % 2
    return patches[:, odd::2], patches[:, 1 - odd :: 2]


@fx_leaf
def merge_means(
    tokens: Float[Tensor, "b n d"], sizes: Float[Tensor, "b n 1"], pairs: Pairs, prefix: int
) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m 1"]]:
    """Replace merged tokens by their mean, weighted by how many patches each stands for.

    Returns:
        The tokens, prefix tokens first, then what is left of the first set, then the second; and their sizes.
    """
    sums = torch.cat([tokens * sizes, sizes], dim=2)
    first, second = halves(sums, prefix)
    width = first.shape[2]
    kept, gone = (first.gather(1, some[:, :, None].expand(-1, -1, width)) for some in pairs[:2])
    second = second.scatter_add(1, pairs.into[:, :, None].expand(-1, -1, width), gone)
    sums = torch.cat([sums[:, :prefix], kept, second], dim=1)
    # counts, which are no function of the weights
    sizes = sums[:, :, -1:].detach()
    return sums[:, :, :-1] / sizes, sizes


@fx_leaf
def follow(groups: Int[Tensor, "b p"], pairs: Pairs, prefix: int) -> Int[Tensor, "b p"]:
    """Return where the patches are whose tokens were at these places before a merge."""
    kept = pairs.kept.shape[1]
    here = torch.arange(kept, device=groups.device).expand_as(pairs.kept)
    first = torch.zeros_like(torch.cat([pairs.kept, pairs.gone], dim=1))
    first = first.scatter(1, pairs.kept, here).scatter(1, pairs.gone, kept + pairs.into)
    half = groups // 2
    in_first = groups % 2 == prefix % 2
    # a place of the second set may lie behind the first one, where nothing is looked up
    moved = first.gather(1, half.clamp(max=first.shape[1] - 1))
    return torch.where(in_first, moved, kept + half)
