"""LeVJEPA, for arrays of one to seven axes.

L. Kuhn et al. 2026, arXiv:2608.27395.

LeJEPA (arXiv:2511.08544) on videos and other arrays: embeddings of all views are drawn to that of the first
one, and those of a batch to an isotropic Gaussian. The encoder sees few of the tokens, which keeps it cheap,
and no patch sees what is later in time.

Family: learning
Differs from the paper: the paper was not compared; the function is the public vit-pytorch package's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi, prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import check_names, checks_arguments
from vit_pytorch.layers.attention import Attention, BlockInputs
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.offsets import cells
from vit_pytorch.layers.patches import PatchGrid, PrefixTokens, draw_patches, token_ids
from vit_pytorch.layers.rotary import RotaryPositions, turns
from vit_pytorch.ssl import sigreg
from vit_pytorch.ssl.views import join_by_size
from vit_pytorch.vit_nd import causal_mask, make_grid, read_axes


class NDTransformer(IsotropicModel):
    """An encoder of arrays of one to seven axes (b c ...), with rotary positions and causal axes.

    An array may be smaller than `input_shape`: positions are parts of its own size. The class token sees all
    patches, and with causal axes no patch sees the class token.

    Args:
        ndim: number of axes.
        input_shape: size of the largest array, one number for all axes or one for each.
        patch_size: size of a patch, one number for all axes or one for each; divides `input_shape`.
        rotary_max_freq: twice the highest frequency of the rotations, in half turns over an axis.
        causal_dims: axes along which a patch sees only patches at its own place or before it.
    """

    def __init__(
        self,
        *,
        ndim: int,
        input_shape: int | Sequence[int],
        patch_size: int | Sequence[int],
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        rotary_max_freq: float = 10.0,
        causal_dims: int | Sequence[int] = (0,),
    ) -> None:
        grid = make_grid(ndim, input_shape, patch_size)
        super().__init__(grid=grid, num_classes=0, dim=dim, channels=channels)
        self.ndim = ndim
        self.dim = dim
        self.causal_dims = read_axes(causal_dims, ndim)
        if dim_head < 2 * ndim:
            raise ValueError(f"dim_head must be at least {2 * ndim} for {ndim} axes, got {dim_head}")
        self.max_freq = rotary_max_freq
        self.num_freqs = dim_head // (2 * ndim)
        self.patch_embed = NormedProjection(grid, channels, dim)
        self.prefix = PrefixTokens(dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            qkv_bias=False,
            out_bias=False,
            norm=nn.RMSNorm,
        )
        for part in self.blocks.modules():
            if isinstance(part, Attention):
                part.position = RotaryPositions()
        self.norm = nn.RMSNorm(dim)
        self.reset_classifier(0)

    def forward(
        self, images: Float[Tensor, "b c *size"], drop_ratio: float | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first; see `forward_features`."""
        return self.forward_features(images, drop_ratio)

    def forward_features(
        self, images: Float[Tensor, "b c *size"], drop_ratio: float | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first.

        Args:
            images: arrays.
            drop_ratio: share of the patches that is dropped in training, at random; default none.

        Raises:
            ValueError: if rank, channels, size or dtype of the arrays are not what the model takes.
        """
        tokens = self.embed(images)
        ids_keep = None
        if drop_ratio is not None and self.training:
            ids_keep = draw_patches(tokens, 1, drop_ratio)
            tokens = tokens.take_along_dim(token_ids(ids_keep, 1)[..., None], dim=1)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]), ids_keep)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: rotations, and which patches each patch sees."""
        device = next(self.parameters()).device
        mask = None
        if self.causal_dims:
            mask = causal_mask(grid, self.causal_dims, ids_keep, prefix=1, device=device)
        places = cells(grid).to(device) / torch.tensor(grid, device=device)
        scales = torch.linspace(1.0, self.max_freq / 2, self.num_freqs, device=device)
        angles = ((2 * places - 1)[..., None] * scales * pi).flatten(1)
        angles = angles if ids_keep is None else angles[ids_keep][:, None]
        # the class token is not rotated
        rotation = turns(nn.functional.pad(angles, (0, 0, 1, 0)))
        return BlockInputs(tuple(grid), 1, ids_keep, mask=mask, rotation=rotation)


class NormedProjection(nn.Module):
    """Project patches of any number of axes linearly, with norms before and after."""

    def __init__(self, grid: PatchGrid, channels: int, dim: int) -> None:
        super().__init__()
        self.grid = grid
        size = channels * prod(grid.patch)
        self.norm_in = nn.LayerNorm(size, bias=False)
        self.proj = nn.Linear(size, dim)
        self.norm_out = nn.LayerNorm(dim, bias=False)
        nn.init.trunc_normal_(self.proj.weight, std=size**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        return self.norm_out(self.proj(self.norm_in(self.grid.patchify(x))))


class LeVJEPANDLosses(NamedTuple):
    """The two parts of the loss, with their weights."""

    invariance_loss: Float[Tensor, ""]
    sigreg_loss: Float[Tensor, ""]


class ViewLearner(nn.Module):
    """Learning without labels from views of arrays, which are passed in.

    The losses and their settings of `LeVJEPAND` and `levjepa.LeVJEPA`.

    Args:
        encoder: returns tokens (b n d) of a batch and a share of patches to drop, the class token first.
        num_classes_K: width of what is projected.
        projection_hidden: width inside the projector.
        drop_ratio: share of the patches that the encoder does not see in training.
        use_batch_norm: whether the projector has batch norm, instead of RMSNorm.
        norm_fn: builds another norm of the projector from its width.
        use_weight_standardization: whether rows of the projector's first layer have mean 0 and variance 1.
        invariance_loss_weight: weight of the distance of all views to the first one.
        sigreg_loss_weight: weight of `sigreg_loss`.
        sigreg_loss_kwargs: further arguments of `sigreg_loss`.
    """

    @checks_arguments
    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_classes_K: int = 256,  # noqa: N803
        projection_hidden: int = 256,
        drop_ratio: float = 0.95,
        use_batch_norm: bool = True,
        norm_fn: Callable[[int], nn.Module] | None = None,
        use_weight_standardization: bool = False,
        invariance_loss_weight: float = 1.0,
        sigreg_loss_weight: float = 0.02,
        sigreg_loss_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.drop_ratio = drop_ratio
        self.invariance_loss_weight = invariance_loss_weight
        self.sigreg_loss_weight = sigreg_loss_weight
        self.sigreg_loss_kwargs = dict(sigreg_loss_kwargs or {})
        check_names(sigreg_loss, self.sigreg_loss_kwargs, owner="sigreg_loss")
        if not hasattr(encoder, "num_features"):
            raise ValueError(
                f"encoder must be a model of tokens with `num_features`, got {type(encoder).__name__}"
            )
        width: int = encoder.num_features  # type: ignore[assignment]
        first = nn.Linear(width, projection_hidden)
        if use_weight_standardization:
            parametrize.register_parametrization(first, "weight", Standardised())
        norm = norm_fn or (nn.BatchNorm1d if use_batch_norm else nn.RMSNorm)
        self.projector = nn.Sequential(
            first, norm(projection_hidden), nn.GELU(), nn.Linear(projection_hidden, num_classes_K)
        )
        self.to(next(encoder.parameters()).device)

    def embed(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b d"]:
        """Return the class tokens of arrays."""
        tokens: Tensor = self.encoder(images)
        return tokens[:, 0]

    def losses(
        self, views: Sequence[Float[Tensor, "b c *_"]], generator: Generator | None = None
    ) -> LeVJEPANDLosses:
        """Compute the two parts of the loss.

        Args:
            views: those of one batch, of which the first is the one that all are drawn to.
            generator: random numbers of SIGReg's directions; default torch's.

        Raises:
            ValueError: for less than two views.
        """
        if len(views) < 2:
            raise ValueError(f"a batch has at least two views, got {len(views)}")
        tokens = [self.encoder(joined, drop_ratio=self.drop_ratio)[:, 0] for joined in join_by_size(views)]
        projected = self.projector(torch.cat(tokens)).unflatten(0, (len(views), -1)).float()
        options = {"generator": generator, "gather": self.training, **self.sigreg_loss_kwargs}
        return LeVJEPANDLosses(
            (projected - projected[:1]).square().mean() * self.invariance_loss_weight,
            sigreg_loss(projected, **options) * self.sigreg_loss_weight,
        )


class LeVJEPAND(ViewLearner):
    """Learning without labels from arrays of any number of axes.

    A step is `loss = learner(arrays)`, its backward pass, and the optimizer's step. Views are made by the
    functions that are passed in. Further arguments are those of `ViewLearner`.

    Args:
        encoder: such as `NDTransformer`.
        input_shape: size of the arrays, one number for all axes or one for each.
        augment_src: makes the view that the others are drawn to; default the arrays as they are.
        augment_tgt: makes the other views; default the arrays as they are.
        num_target_aug_views: number of other views.

    Raises:
        ValueError: if the encoder does not take arrays of this size.
    """

    @checks_arguments
    def __init__(
        self,
        encoder: nn.Module,
        *,
        input_shape: int | Sequence[int],
        augment_src: Callable[[Tensor], Tensor] | None = None,
        augment_tgt: Callable[[Tensor], Tensor] | None = None,
        num_target_aug_views: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        rank: int = encoder.ndim  # type: ignore[assignment]
        shape = (input_shape,) * rank if isinstance(input_shape, int) else tuple(input_shape)
        encoder.grid.fit(shape)  # type: ignore[union-attr, operator]
        self.augment_src = augment_src or nn.Identity()
        self.augment_tgt = augment_tgt or nn.Identity()
        self.num_target_aug_views = num_target_aug_views

    def forward(
        self,
        images: Float[Tensor, "b c *size"],
        return_embedding: bool = False,
        return_loss_breakdown: bool = False,
        *,
        generator: Generator | None = None,
    ) -> Tensor | tuple[Tensor, LeVJEPANDLosses]:
        """Compute the loss of a batch, or embeddings.

        Args:
            images: arrays.
            return_embedding: return the class tokens (b d) instead.
            return_loss_breakdown: return the two parts of the loss in addition.
            generator: random numbers of SIGReg's directions; default torch's.
        """
        if return_embedding:
            return self.embed(images)
        repeated = images.repeat(self.num_target_aug_views, *[1] * (images.ndim - 1))
        targets = self.augment_tgt(repeated).chunk(self.num_target_aug_views)
        parts = self.losses([self.augment_src(images), *targets], generator)
        loss = parts.invariance_loss + parts.sigreg_loss
        return (loss, parts) if return_loss_breakdown else loss


class Standardised(nn.Module):
    """Parametrisation of a weight: rows of mean 0 and variance 1 (arXiv:1903.10520).

    Args:
        eps: least variance that is divided by.
    """

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """Standardise each row."""
        variance, mean = torch.var_mean(weight, dim=1, correction=0, keepdim=True)
        return (weight - mean) / variance.clamp_min(self.eps).sqrt()


def sigreg_loss(
    x: Float[Tensor, "*v n d"],
    num_proj: int = 1024,
    knots: int = 17,
    *,
    generator: Generator | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Compute SIGReg (`ssl.sigreg.sigreg_loss`) by an integral from -3 to 3, whose integrand is even.

    Args:
        x: `n` embeddings of each of `v` views.
        num_proj: number of random directions.
        knots: knots from 0 to 3.
        generator: see `ssl.sigreg.sigreg_loss`.
        gather: see `ssl.sigreg.sigreg_loss`.
    """
    return sigreg.sigreg_loss(x, num_proj, (-3.0, 3.0), 2 * knots - 1, generator=generator, gather=gather)
