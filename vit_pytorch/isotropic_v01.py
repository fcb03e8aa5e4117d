"""What plain transformers share: one sequence of tokens from the embedding to the head.

A paper that changes a seam sets the part that stands there and inherits the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.base import Intermediates, VisionModel, resolve_indices
from vit_pytorch.layers_v01.blocks import Encoder
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchGrid
from vit_pytorch.layers_v01.positions import Positions
from vit_pytorch.layers_v01.tokens import PatchDropout, PrefixTokens, make_classifier

TIMM_POOL = {"token": "cls", "avg": "mean"}


def has_class_token(pool: str, told: bool | None) -> bool:
    """Tell whether a model has a class token: as told, or where it is what is classified.

    Raises:
        ValueError: where the class token is classified and there is none.
    """
    if pool in ("cls", "cls+mean") and told is False:
        raise ValueError(f"pool={pool!r} needs a class token, got class_token=False")
    return pool in ("cls", "cls+mean") if told is None else told


class IsotropicModel(VisionModel):
    """A model that is one sequence of tokens; the base of the plain transformers.

    The constructor of a subclass calls this one, then sets `patch_embed` and `encoder`, whatever else of
    the attributes below differs from nothing, and calls `reset_classifier` last.

    Attributes:
        grid: how images are cut.
        pool: "cls", "mean" or "cls+mean" (one after the other), or a name that the subclass's `pool_tokens`
            knows.
        patch_embed: gives tokens from images.
        prefix: tokens in front of the patches.
        positions: gives what is added to the tokens of a grid; None for nothing.
        dropout: acts on the embedded tokens.
        patch_dropout: leaves patches out in training.
        pre_norm: acts in front of the encoder.
        encoder: the blocks.
        norm: acts on the tokens behind the encoder.
        fc_norm: acts on the pooled vector.
        pre_logits: acts on the normed pooled vector.
        head_width: width of what enters the classifier.
        head: the classifier.
    """

    grid: PatchGrid
    pool: str
    patch_embed: nn.Module
    prefix: PrefixTokens
    positions: Positions | None
    encoder: Encoder
    head: nn.Module

    def __init__(
        self, *, grid: PatchGrid, num_classes: int, dim: int, channels: int = 3, pool: str = "cls"
    ) -> None:
        super().__init__(num_classes=num_classes, num_features=dim, channels=channels, image_size=grid.size)
        self.grid = grid
        self.pool = pool
        self.patch_embed = nn.Identity()
        self.prefix = PrefixTokens(dim, class_token=False)
        self.positions = None
        self.dropout: nn.Module = nn.Identity()
        self.pre_norm: nn.Module = nn.Identity()
        self.patch_dropout = PatchDropout()
        self.encoder = Encoder(lambda layer: nn.Identity(), depth=0)
        self.norm: nn.Module = nn.Identity()
        self.fc_norm: nn.Module = nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        self.to_latent = nn.Identity()
        self.head = nn.Identity()
        self.head_width = 2 * dim if pool == "cls+mean" else dim

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens in front of the patches."""
        return len(self.prefix)

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """Number of prefix tokens that pass through the encoder: all of them, unless they come later."""
        return self.num_prefix_tokens

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels), and by axis."""
        return [
            {
                "module": f"encoder.blocks.{layer}",
                "num_chs": self.num_features,
                "reduction": max(self.grid.patch),
                "reductions": self.grid.patch,
            }
            for layer in range(len(self.encoder.blocks))
        ]

    @property
    def head_hidden_size(self) -> int:
        """Width of what enters the classifier."""
        return self.head_width

    def patchify(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch of pixels to a vector (row, column, channel)."""
        self.check_images(images)
        return self.grid.patchify(images)

    def embed(
        self,
        images: Float[Tensor, "b c *size"],
        *,
        mask_fn: Callable[[Tensor], Tensor] | None = None,
        add_positions: bool = True,
    ) -> Float[Tensor, "b n d"]:
        """Turn images into the tokens that enter the encoder, prefix tokens in front (equation 1).

        Args:
            images: input.
            mask_fn: acts on the embedded patches (b, n, d) before they have positions, as learning by masking
                asks for.
            add_positions: whether positions are added.
        """
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        x = self.patch_embed(images)
        if mask_fn is not None:
            x = mask_fn(x)
        positions = self.positions if add_positions else None
        if positions is not None:
            x = x + positions(grid)
        if self.num_encoder_prefix_tokens:
            prefix = self.prefix()
            if positions is not None and positions.prefix:
                prefix = prefix + positions.for_prefix(self.num_prefix_tokens)
            x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pre_norm(self.dropout(x))

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        kept: Int[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Run the encoder and its final norm (equations 2 to 4).

        Args:
            tokens: what `embed` gives, or some of it.
            grid: patches along each axis; those of the largest input unless told. Only blocks that know
                neighbours or places ask for it.
            kept: places in the grid, in row-major order, of the patches that are among the tokens; all of
                them unless told.
        """
        grid = self.grid.shape if grid is None else grid
        return self.finish(self.encoder(tokens, *self.context(grid, kept)))

    def context(self, grid: Sequence[int], kept: Int[Tensor, "b k"] | None = None) -> tuple[Any, ...]:
        """Give what every block is handed beside the tokens of a grid: nothing, as a rule.

        Args:
            grid: patches along each axis.
            kept: see `encode`.
        """
        return ()

    def finish(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Turn the encoder's output into the features, by the final norm."""
        return self.norm(tokens)

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Compute the tokens after the final norm, prefix tokens in front."""
        tokens, kept = self.patch_dropout(self.embed(images), self.num_encoder_prefix_tokens)
        return self.encode(tokens, self.grid.fit(images.shape[2:]), kept)

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Pool tokens and classify them.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
        """
        x = self.to_latent(self.pre_logits(self.fc_norm(self.pool_tokens(features))))
        return x if pre_logits else self.head(x)

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Give one vector for each image."""
        if self.pool == "cls":
            return features[:, 0]
        mean = features[:, self.num_prefix_tokens :].mean(dim=1)
        return mean if self.pool == "mean" else torch.cat([features[:, 0], mean], dim=1)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c *size"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """Compute features between the blocks; see `VisionModel.forward_intermediates`.

        Raises:
            ValueError: where a layer is outside the model, or maps are asked for while patches are left out.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        layers = resolve_indices(indices, len(self.feature_info))
        tokens, kept = self.patch_dropout(self.embed(images), self.num_encoder_prefix_tokens)
        grid = self.grid.fit(images.shape[2:])
        if kept is not None and output_fmt == "NCHW":
            raise ValueError(
                f"a map needs all {prod(grid)} patches, and patch_dropout leaves {kept.shape[1]} of them: "
                "use output_fmt='NLC', or eval mode"
            )
        context = self.context(grid, kept)
        last, taken = self.encoder.intermediates(tokens, layers, *context, stop_early=stop_early)
        if norm:
            taken = [self.norm(tokens) for tokens in taken]
        prefix = [tokens[:, : self.num_encoder_prefix_tokens] for tokens in taken]
        taken = [tokens[:, self.num_encoder_prefix_tokens :] for tokens in taken]
        if output_fmt == "NCHW":
            taken = [tokens.transpose(1, 2).unflatten(2, grid) for tokens in taken]
        found: Intermediates = list(zip(taken, prefix, strict=True)) if return_prefix_tokens else taken
        return found if intermediates_only else (self.finish(last), found)

    def get_classifier(self) -> nn.Module:
        """Give the layer that computes the logits; the identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, and the pooling where told.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "cls" (timm's "token") or "mean" (timm's "avg").
        """
        if global_pool is not None:
            self._change_pool(TIMM_POOL.get(global_pool, global_pool))
        self.head = make_classifier(self.head_width, num_classes, like=next(self.parameters()))
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        names = {name for name, _ in self.named_parameters()}
        tokens = {f"prefix.{token}" for token in ("class_token", "distillation_token", "registers")}
        return names & (tokens | {"positions.table"})

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^(?:prefix|positions|rotary|relative|patch_embed|pre_norm)\.",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def _change_pool(self, pool: str) -> None:
        """Pool by the class token or by the mean from now on."""
        if pool == self.pool:
            return
        if not {self.pool, pool} <= {"cls", "mean"}:
            raise ValueError(f"pooling cannot change from {self.pool!r} to {pool!r}")
        class_token = self.prefix.class_token is not None
        if pool == "cls" and not class_token:
            raise ValueError("pooling by the class token needs one; the model has none")
        self.pool = pool
        self._record(pool=pool, class_token=class_token)


class LateClassModel(IsotropicModel):
    """A plain model whose class token joins behind the encoder, and collects the image there.

    Attributes:
        class_encoder: blocks of class attention, on the class token and the patches.
    """

    class_encoder: Encoder

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """None: the class token comes behind the encoder."""
        return 0

    def finish(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Let the class token collect the image, and apply the final norm."""
        token = self.prefix().expand(tokens.shape[0], -1, -1)
        return self.norm(self.class_encoder(torch.cat([token, tokens], dim=1)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        super().set_grad_checkpointing(enable)
        self.class_encoder.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth, class attention behind the blocks."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed)\.",
            "blocks": r"^encoder\.blocks\.(\d+)",
            "class_blocks": [(r"^class_encoder\.blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def _change_pool(self, pool: str) -> None:
        """Refuse other poolings: patches take nothing from the class token, which would learn nothing."""
        if pool != "cls":
            raise ValueError(f"{type(self).__name__} classifies the class token; pooling cannot be {pool!r}")
