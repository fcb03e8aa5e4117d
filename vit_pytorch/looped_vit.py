"""Universal Transformers, as a ViT whose middle blocks run several times.

M. Dehghani, S. Gouws, O. Vinyals, J. Uszkoreit, Ł. Kaiser 2018, arXiv:1807.03819.

The blocks in the middle are applied again and again, so that depth costs no parameters and can be chosen at
each call; the loss may act after each loop, and a gate may learn when to stop.

Family: plain
Differs from the paper: only the blocks in the middle are shared, and images stop together; what attention
returns is made orthogonal to each token's own value, and gated by head; deep supervision and the gate
predict what further loops would gain. All of this is of the public vit-pytorch package, after a paper that
it names, arXiv:2609.40305.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, FusedAttention, merge_heads
from vit_pytorch.layers.attention import Attention as SelfAttention
from vit_pytorch.layers.blocks import Block, FeedForward
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PrefixTokens, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.vit_nd import PatchProjection, make_grid

WEIGHTINGS = ("final", "exponential", "final_mean")


class LoopedViT(IsotropicModel):
    """The Vision Transformer with a loop, on images or arrays of one to seven axes.

    Args:
        ndim: number of axes, where sizes are one number.
        input_shape: size of the largest array, one number for all axes or one for each.
        patch_size: size of a patch, one number for all axes or one for each; divides the size.
        image_size: another name of `input_shape`.
        pre_loop_depth: number of blocks before the loop.
        num_looped_blocks: number of blocks in the loop.
        post_loop_depth: number of blocks after the loop.
        loop_depth: number of loops.
        deep_supervision_weighting: what `loop_weights` are (see `deep_supervision_weights`).
        adaptive_loop: have a gate that predicts what further loops gain.
        exit_threshold: predicted gain, in loss per loop, at which `adaptive_exit` stops.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        ndim: int = 2,
        input_shape: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int],
        image_size: int | Sequence[int] | None = None,
        pre_loop_depth: int = 6,
        num_looped_blocks: int = 5,
        post_loop_depth: int = 6,
        loop_depth: int = 4,
        deep_supervision_weighting: str | Sequence[float] = "final_mean",
        pool: Literal["cls", "mean"] = "cls",
        heads: int = 8,
        dim_head: int = 64,
        mlp_dim: int = 2048,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        adaptive_loop: bool = False,
        exit_threshold: float = 0.0,
    ) -> None:
        size = image_size if input_shape is None else input_shape
        if size is None:
            raise ValueError("input_shape (or image_size) must be given")
        grid = make_grid(ndim if isinstance(size, int) else len(size), size, patch_size)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        warn_if_few(grid)
        self.loop_depth = loop_depth
        self.exit_threshold = exit_threshold
        self.weighting = deep_supervision_weighting
        # tells now what is wrong with the weights
        deep_supervision_weights(loop_depth, deep_supervision_weighting)
        self.patch_embed = PatchProjection(grid, channels, dim)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)

        def blocks(depth: int) -> nn.Sequential:
            options: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "dropout": dropout}
            return nn.Sequential(
                *(
                    Block(dim, ExclusiveAttention(dim, **options), FeedForward(dim, mlp_dim, dropout=dropout))
                    for _ in range(depth)
                )
            )

        self.pre_loop = blocks(pre_loop_depth)
        self.looped = blocks(num_looped_blocks)
        self.post_loop = blocks(post_loop_depth)
        self.norm = nn.LayerNorm(dim)
        self.exit_gate = (
            ExitGate(dim, heads=heads, dim_head=dim_head, dropout=dropout) if adaptive_loop else None
        )
        self.reset_classifier(num_classes)

    @property
    def loop_weights(self) -> Float[Tensor, " l"]:
        """Weights of the loss after each loop, for `deep_supervision_loss`."""
        return deep_supervision_weights(self.loop_depth, self.weighting)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is; the blocks in the loop run several times, and are left out."""
        stages = {"pre_loop": self.pre_loop, "post_loop": self.post_loop}
        names = [f"{name}.{layer}" for name, stage in stages.items() for layer in range(len(stage))]
        patch = self.grid.patch
        return [
            {"module": name, "num_chs": self.num_features, "reduction": max(patch), "reductions": patch}
            for name in names
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed)\.",
            "pre_loop": r"^pre_loop\.(\d+)",
            "looped": r"^looped\.(\d+)",
            "post_loop": [(r"^post_loop\.(\d+)", None), (r"^(?:norm|exit_gate)\.", (99999,))],
        }

    def forward(  # type: ignore[override]
        self,
        images: Float[Tensor, "b c *size"],
        loop_depth: int | None = None,
        return_all_logits: bool = False,
        return_exit_benefits: bool = False,
        adaptive_exit: bool = False,
        exit_threshold: float | None = None,
    ) -> Tensor | tuple[Tensor, Float[Tensor, "l b"]]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: images or arrays.
            loop_depth: number of loops; default the model's.
            return_all_logits: return the logits after each loop (l b k), instead of the last ones.
            return_exit_benefits: return the gains that the gate predicts after each loop but the last, in
                addition.
            adaptive_exit: stop once no image of the batch is predicted to gain more than the threshold.
            exit_threshold: the threshold; default the model's.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes, there are
                no loops, or the gate is asked for without one or with a single loop.
        """
        loops = self.loop_depth if loop_depth is None else loop_depth
        threshold = self.exit_threshold if exit_threshold is None else exit_threshold
        ask = adaptive_exit or return_exit_benefits
        if loops < 1 or (ask and loops < 2):
            raise ValueError(f"loop_depth must be at least {1 + ask}, got {loops}")
        if ask and self.exit_gate is None:
            raise ValueError("predicted gains need a model with adaptive_loop=True")
        x = self.enter(images)
        logits, gains = [], []
        for loop in range(loops):
            x = self.looped(x)
            last = loop == loops - 1
            if not (last or ask or return_all_logits):
                continue
            features = self.decode(x)
            logits.append(self.forward_head(features))
            if ask and not last:
                assert self.exit_gate is not None
                gains.append(self.exit_gate(features))
                if adaptive_exit and bool(gains[-1].max() <= threshold):
                    break
        output = torch.stack(logits) if return_all_logits else logits[-1]
        return (output, torch.stack(gains)) if return_exit_benefits else output

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        x = self.enter(images)
        for _ in range(self.loop_depth):
            x = self.looped(x)
        return self.decode(x)

    def enter(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the loop."""
        return self.pre_loop(self.embed(images))

    def decode(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Apply the blocks after the loop and the final norm."""
        return self.norm(self.post_loop(x))

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Tensor | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply all blocks and the final norm; see `IsotropicModel.encode`."""
        tokens = self.pre_loop(tokens)
        for _ in range(self.loop_depth):
            tokens = self.looped(tokens)
        return self.decode(tokens)


class ExclusiveAttention(SelfAttention):
    """Attention whose output has no part along each token's own value, and is gated by head."""

    def __init__(self, dim: int, *, heads: int = 8, dim_head: int = 64, dropout: float = 0.0) -> None:
        super().__init__(
            dim,
            heads=heads,
            dim_head=dim_head,
            qkv_bias=False,
            out_bias=False,
            dropout=dropout,
            kernel=lambda: FusedAttention(dropout),
        )
        self.to_gate = nn.Linear(dim, heads, bias=False)
        init_xavier(self.to_gate)

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens of its sample."""
        q, k, v = self.project(x)
        mixed, own = self.attend(q, k, v, inputs), F.normalize(v, dim=-1)
        mixed = mixed - (mixed * own).sum(dim=-1, keepdim=True) * own
        return self.merge(mixed * self.to_gate(x).sigmoid().transpose(1, 2)[..., None])


class ExitGate(nn.Module):
    """Predict what further loops gain, from tokens that learned queries attend to.

    Args:
        num_queries: number of queries of a head.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float, num_queries: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.empty(heads, num_queries, dim_head))
        nn.init.normal_(self.queries, std=dim_head**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.kernel = FusedAttention(dropout)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.norm_out = nn.LayerNorm(dim)
        self.to_hidden = nn.Linear(dim, 2 * dim)
        self.dropout = nn.Dropout(dropout)
        self.to_gain = nn.Linear(2 * dim, 1)
        init_xavier(self.to_kv, parts=2)
        for linear in (self.to_out, self.to_hidden, self.to_gain):
            init_xavier(linear)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
        """Return the gain of each sample, in loss per loop."""
        k, v = self.to_kv(self.norm(x)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.to_out(merge_heads(self.kernel(self.queries.expand(len(x), -1, -1, -1), k, v))).mean(
            dim=1
        )
        return self.to_gain(self.dropout(F.gelu(self.to_hidden(self.norm_out(pooled)))))[:, 0]


def deep_supervision_weights(
    num_loops: int, weighting: str | Sequence[float] | Tensor = "final_mean"
) -> Float[Tensor, " l"]:
    """Return the weights of the loss after each loop.

    Args:
        num_loops: number of loops.
        weighting: "final" for the last loop only; "exponential" for 1, 1/2, 1/4 … from the last one;
            "final_mean" for 1 of the last one, and 1 that the others share; or the weights.

    Raises:
        ValueError: if the weighting is unknown, or there are not as many weights as loops.
    """
    if isinstance(weighting, str):
        check_choice("weighting", weighting, WEIGHTINGS)
        before = {"final": 0.0, "final_mean": 1 / max(num_loops - 1, 1)}
        weighting = [
            1.0 if rest == 0 else before.get(weighting, 2.0**-rest) for rest in reversed(range(num_loops))
        ]
    if len(weighting) != num_loops:
        raise ValueError(f"weights must be one for each of {num_loops} loops, got {tuple(weighting)}")
    return torch.as_tensor(weighting, dtype=torch.float32)


def per_loop_losses(
    logits: Float[Tensor, "l b k"], labels: Int[Tensor, " b"], label_smoothing: float = 0.0
) -> Float[Tensor, "l b"]:
    """Compute the cross-entropy of each sample after each loop."""
    flat = labels.repeat(len(logits))
    loss = F.cross_entropy(logits.flatten(0, 1), flat, reduction="none", label_smoothing=label_smoothing)
    return loss.unflatten(0, (len(logits), -1))


def deep_supervision_loss(
    logits: Tensor,
    labels: Int[Tensor, " b"],
    weighting: str | Sequence[float] | Tensor = "final_mean",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Compute the weighted sum of the losses after all loops, or the loss of logits (b k).

    Args:
        logits: logits after each loop (l b k), or of one.
        labels: classes.
        weighting: see `deep_supervision_weights`.
        label_smoothing: share of the target that all classes share, in [0, 1].
    """
    if logits.ndim == 2:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    losses = per_loop_losses(logits, labels, label_smoothing).mean(dim=1)
    return (losses * deep_supervision_weights(len(logits), weighting).to(losses)).sum()


@torch.no_grad()
def adaptive_exit_targets(
    logits: Float[Tensor, "l b k"], labels: Int[Tensor, " b"], label_smoothing: float = 0.0
) -> Float[Tensor, "m b"]:
    """Return what the gate shall predict after each loop but the last: the largest gain per further loop.

    Args:
        logits: logits after each loop.
        labels: classes.
        label_smoothing: see `deep_supervision_loss`.

    Raises:
        ValueError: if there is only one loop.
    """
    if len(logits) < 2:
        raise ValueError(f"targets need logits of at least 2 loops, got {len(logits)}")
    losses = per_loop_losses(logits, labels, label_smoothing)
    found = []
    for loop in range(len(losses) - 1):
        further = torch.arange(1, len(losses) - loop, device=losses.device)[:, None]
        found.append(((losses[loop] - losses[loop + 1 :]) / further).amax(dim=0).clamp_min(0))
    return torch.stack(found)


Attention = ExclusiveAttention
