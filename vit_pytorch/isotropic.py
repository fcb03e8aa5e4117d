"""What models of one sequence share: embedding, pooling, intermediate features, classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.base import TIMM_POOL, VisionModel
from vit_pytorch.layers.attention import BlockInputs, Ids
from vit_pytorch.layers.patches import MaskFn, PatchDropout, PatchGrid, PrefixTokens, seen_tokens
from vit_pytorch.layers.positions import Positions
from vit_pytorch.layers.space_time import mean_of_frames, seen_in_frames


class IsotropicModel(VisionModel):
    """Base class of models that are one sequence of tokens.

    The constructor of a subclass calls this one, then sets `patch_embed`, `blocks` and whatever else of the
    attributes below it has, and calls `reset_classifier` last. `forward_features` is the subclass's own;
    wrappers that learn by masking call `patchify`, `embed` and `encode`.

    Attributes:
        grid: how images are cut.
        pool: "cls", "mean", "cls+mean", "map", or a name that the subclass's `pool_features` knows.
        patch_embed: returns tokens of images.
        prefix: tokens before the patches.
        positions: adds position embeddings; None for none.
        dropout: acts on the embedded tokens.
        patch_dropout: drops patches in training.
        pre_norm: acts on the tokens before the blocks.
        blocks: the layers.
        norm: acts on the tokens after the blocks.
        attention_pool: pools the patches for "map".
    """

    grid: PatchGrid
    pool: str
    patch_embed: nn.Module
    prefix: PrefixTokens
    positions: Positions | None
    blocks: nn.ModuleList
    # why the blocks cannot do without some of the patches, as the rest of a sentence
    needs_all = ""
    undecayed = r"^prefix\.(class_token|distillation_token|registers)$|^positions\.table$"

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
        self.blocks = nn.ModuleList()
        self.norm: nn.Module = nn.Identity()
        self.fc_norm = nn.Identity()
        self.pre_logits = nn.Identity()
        self.head = nn.Identity()
        self.attention_pool = None

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        """Number of tokens before the patches in the output of `forward_features`."""
        return len(self.prefix)

    @property
    def any_size(self) -> bool:
        """Whether an input may be larger than `image_size`, which is then only the customary one."""
        return self.grid.dynamic

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """Number of prefix tokens that pass through the blocks: all of them, unless they come later."""
        return self.num_prefix_tokens

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels), and by axis."""
        return [
            {
                "module": f"blocks.{layer}",
                "num_chs": self.num_features,
                "reduction": max(self.grid.patch),
                "reductions": self.grid.patch,
            }
            for layer in range(len(self.blocks))
        ]

    def patchify(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch of pixels to a vector (row, column, channel)."""
        self.check_images(images)
        return self.grid.patchify(images)

    def embed(
        self, images: Float[Tensor, "b c *size"], *, mask_fn: MaskFn | None = None, add_positions: bool = True
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the blocks, prefix tokens first (ViT, equation 1).

        Args:
            mask_fn: acts on the embedded patches (b, n, d) before positions are added, as learning by masking
                needs it.
            add_positions: add the position embeddings.
        """
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        x = self.patch_embed(images)
        if mask_fn is not None:
            x = mask_fn(x)
        prefix = self.num_encoder_prefix_tokens
        if prefix:
            x = self.prefix(x)
        if self.positions is not None and add_positions:
            x = self.positions(x, prefix=prefix, grid=grid)
        return self.pre_norm(self.dropout(x))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks and the final norm (ViT, equations 2 to 4).

        Args:
            tokens: output of `embed`, or some of it.
            grid: patches along each axis; default those of the largest input.
            ids_keep: positions in the grid, in row-major order, of the patches that are among the tokens;
                default all of them.
        """
        inputs = self.block_inputs(self.grid.shape if grid is None else tuple(grid), ids_keep)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block.

        Raises:
            ValueError: Patches are missing, and the model `needs_all` of them.
        """
        if self.needs_all and ids_keep is not None:
            raise ValueError(
                f"{type(self).__name__} {self.needs_all} and needs all patches, "
                f"got {ids_keep.shape[1]} kept ones"
            )
        return BlockInputs(tuple(grid), self.num_encoder_prefix_tokens, ids_keep)

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the patches and the prefix tokens in the output of a layer, and the patches' grid."""
        tokens = self.layer_tokens(output)
        prefix = self.num_encoder_prefix_tokens
        tokens = self.norm(tokens) if norm else tokens
        return tokens[:, prefix:], tokens[:, :prefix], self.grid.fit(size)

    def layer_tokens(self, output: Any) -> Float[Tensor, "b n d"]:
        """Return the tokens in the output of a layer."""
        return output

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        # Biases' network and learned frequencies, which layers share, have the rate of the head, as in timm.
        return {
            "stem": r"^(?:prefix|positions|relative(?!\.patches\.network)|patch_embed|pre_norm)\.",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def change_pool(self, global_pool: str) -> None:
        """Pool by the class token or by the mean from now on."""
        pool = TIMM_POOL.get(global_pool, global_pool)
        if self.num_encoder_prefix_tokens == 0 and self.num_prefix_tokens:
            # Patches take nothing from a class token that comes after their blocks: it would learn nothing.
            raise ValueError(f"{type(self).__name__} classifies the class token; pooling cannot be {pool!r}")
        if not {self.pool, pool} <= {"cls", "mean"}:
            raise ValueError(f"pooling cannot change from {self.pool!r} to {pool!r}")
        class_token = self.prefix.class_token is not None
        if pool == "cls" and not class_token:
            raise ValueError("pooling by the class token needs one; the model has none")
        self.pool = pool
        self._record(pool=pool, class_token=class_token)


# A mixin, so that models of videos are no deeper than others.
if TYPE_CHECKING:
    _Base = IsotropicModel
else:
    _Base = object


class MaskedFrames(_Base):
    """What models of videos and volumes add to `IsotropicModel`: frames that are padding, told by a mask."""

    def forward(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b k ..."]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: videos or volumes.
            mask: true for frames, false for padding, which has no influence; default no padding.

        Raises:
            ValueError: if rank, channels, size or dtype of the videos are not what the model takes, or the
                mask is not one of whole patches.
        """
        return self.forward_head(self.forward_features(images, mask), mask=mask)  # type: ignore[call-arg]

    def forward_head(
        self, features: Any, pre_logits: bool = False, mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b k ..."]:
        """Pool tokens, except those of padding, and classify them; see `VisionModel.forward_head`."""
        if self.unpooled:
            return super().forward_head(features)
        x = self.to_latent(self.pre_logits(self.fc_norm(self.pool_features(features, mask))))
        return x if pre_logits else self.head(x)

    def pool_features(
        self, features: Float[Tensor, "b n d"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Return the class token, or the mean or the attention pool of the patches or frames that are no
        padding."""
        if self.pool == "cls" or mask is None:
            return super().pool_features(features)
        patches = features[:, self.num_prefix_tokens :]
        if self.attention_pool is not None:
            seen = seen_in_frames(patches, mask, self.grid.patch[0])
            return self.attention_pool(patches, seen_tokens(seen, 0))
        return mean_of_frames(patches, mask, self.grid.patch[0])
