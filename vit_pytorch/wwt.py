"""WWT: tokens and slots of several levels that attend to each other.

Yoshihashi et al. 2026, arXiv:2605.12021.

Patches and, on each further level, fewer learned slots exchange what they know: both take from one matrix of
scores, patches by their softmax over patches and slots by one over slots (arXiv:2006.15055), and the scores
are handed on from layer to layer as a mask, so that slots come to stand for parts and wholes. Slots are
classified.

Family: plain
Differs from the paper: the paper was not compared; the function is the public vit-pytorch package's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import merge_heads
from vit_pytorch.layers.blocks import FeedForward, layer
from vit_pytorch.layers.init import init_embeddings, init_xavier
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.ssl.sigreg import sigreg_loss

Interactions = Sequence[Sequence[int]]


class WWTReturn(NamedTuple):
    """Logits of the slots and of the patches."""

    slot_logits: Float[Tensor, "b k"]
    token_logits: Float[Tensor, "b k"]


class WWTFeatureReturn(NamedTuple):
    """Slots of each level, patches if the model classifies them, and the scores of each pair of levels."""

    slots: tuple[Float[Tensor, "b s d"], ...]
    tokens: Float[Tensor, "b n d"] | None
    masks: list[Tensor]


class WWT(IsotropicModel):
    """A model of patches and of slots that stand for parts and wholes.

    Levels are numbered: 0 are the patches, then come the levels of slots.

    Args:
        num_slots: number of slots of each level, falling; or of the only level.
        sigreg_slots: for each level whether SIGReg (`ssl.sigreg`) of its slots, divided by their number, is
            returned, too, as a loss; or for all; default none.
        interactions: pairs of levels that attend to each other, the lower one first; default patches with
            each.
        mlp_dim: hidden dimension of the feed-forwards; default 4 * `dim`.
        return_tokens: classify the mean of the patches as well.
        l1norm_after_tokens_softmax: weights of a slot over the patches sum to 1.
        token_softmax_over_slots: patches take what their softmax over slots says, by queries of their own.
        project_mask_groups: with the former, both matrices of scores become one mask.
        gate_attention: multiply the output of each head by a gate in (0, 1), computed from the token.
        num_register_tokens: number of learned tokens of level 0 that are not classified.
        num_register_slots: the same for each level of slots, or for all.
        task_heads: modules, each called with the features of all levels, the scores and the interactions,
            whose outputs are returned, too; they are not part of the saved configuration.

    Raises:
        ValueError: if the numbers of slots do not fall, or there is no such pair of levels.
    """

    undecayed = IsotropicModel.undecayed + r"|^(slots|register_slots)\.|^register_tokens$"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        num_slots: int | Sequence[int],
        sigreg_slots: bool | Sequence[bool] | None = None,
        interactions: Interactions | None = None,
        heads: int = 8,
        dim_head: int = 64,
        mlp_dim: int | None = None,
        channels: int = 3,
        dropout: float = 0.0,
        return_tokens: bool = False,
        l1norm_after_tokens_softmax: bool = False,
        token_softmax_over_slots: bool = False,
        project_mask_groups: bool = False,
        gate_attention: bool = True,
        num_register_tokens: int = 0,
        num_register_slots: int | Sequence[int] = 0,
        task_heads: nn.Module | Sequence[nn.Module] = (),
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="slots")
        warn_if_few(grid)
        slots = (num_slots,) if isinstance(num_slots, int) else tuple(num_slots)
        if any(more <= fewer for more, fewer in pairwise(slots)):
            raise ValueError(f"num_slots must fall from level to level, got {slots}")
        levels = len(slots)
        pairs = [(0, level + 1) for level in range(levels)] if interactions is None else interactions
        self.interactions = tuple((int(lower), int(upper)) for lower, upper in pairs)
        if len(set(self.interactions)) < len(self.interactions) or not all(
            0 <= lower < upper <= levels for lower, upper in self.interactions
        ):
            raise ValueError(
                f"interactions must be different pairs of levels in [0, {levels}], the lower one first, "
                f"got {self.interactions}"
            )
        registers = _per_level("num_register_slots", num_register_slots, levels)
        wanted = _per_level("sigreg_slots", False if sigreg_slots is None else sigreg_slots, levels)
        self.sigreg_slots = tuple(map(bool, wanted))
        self.num_registers = (num_register_tokens, *registers)
        lengths = (0, *(count + more for count, more in zip(slots, registers, strict=True)))
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = LearnedPositions(grid.shape, dim)
        self.slots = nn.ParameterList(nn.Parameter(torch.empty(count, dim)) for count in slots)
        self.register_tokens = nn.Parameter(torch.empty(num_register_tokens, dim))
        self.register_slots = nn.ParameterList(nn.Parameter(torch.empty(count, dim)) for count in registers)
        init_embeddings(*self.slots, self.register_tokens, *self.register_slots)
        options: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head,
            "mlp_dim": 4 * dim if mlp_dim is None else mlp_dim,
            "dropout": dropout,
            "normalise": l1norm_after_tokens_softmax,
            "two_queries": token_softmax_over_slots,
            "join_masks": project_mask_groups and token_softmax_over_slots,
            "gate": gate_attention,
        }
        self.blocks = nn.ModuleList(
            LevelBlock(dim, levels=1 + levels, lengths=lengths, interactions=self.interactions, **options)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.token_norm = nn.LayerNorm(dim, bias=False) if return_tokens else None
        self.token_head: nn.Module | None = None
        self.task_heads = nn.ModuleList([task_heads] if isinstance(task_heads, nn.Module) else task_heads)
        self._record(task_heads=())
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifiers of slots and of patches; see `VisionModel.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        if self.token_norm is not None:
            self.token_head = self.make_head(num_classes)

    def forward(self, images: Float[Tensor, "b c h w"], return_embeddings: bool = False) -> Any:
        """Compute logits of the slots, or their pooled embedding if `num_classes` is 0.

        Args:
            images: input.
            return_embeddings: return a `WWTFeatureReturn` instead.

        Returns:
            Logits; a `WWTReturn` with `return_tokens`; in a tuple with the outputs of `task_heads`, and then
            the loss of `sigreg_slots`, where there are such.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes.
        """
        levels, masks = self.run(images)
        tokens, *slots = levels
        if return_embeddings:
            return WWTFeatureReturn(tuple(slots), None if self.token_norm is None else tokens, masks)
        logits = self.forward_head(self.norm(torch.cat(slots, dim=1)))
        output: Any = logits
        if self.token_norm is not None and self.token_head is not None:
            output = WWTReturn(logits, self.token_head(self.token_norm(tokens).mean(dim=1)))
        further = [head(tuple(levels), masks, self.interactions) for head in self.task_heads]
        chosen = [slot.flatten(0, 1) for slot, wanted in zip(slots, self.sigreg_slots, strict=True) if wanted]
        if chosen:
            further.append(torch.stack([sigreg_loss(slot) / len(slot) for slot in chosen]).sum())
        return (output, *further) if further else output

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s d"]:
        """Return the slots of all levels after the norm, level by level."""
        return self.norm(torch.cat(self.run(images)[0][1:], dim=1))

    def pool_features(self, features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
        """Return the mean over the levels of the mean of their slots."""
        levels = features.split([len(slots) for slots in self.slots], dim=1)
        return torch.stack([slots.mean(dim=1) for slots in levels]).mean(dim=0)

    def run(self, images: Float[Tensor, "b c h w"]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tokens of all levels and the scores of all interactions, without registers.

        Scores are (b h n s), or (b 2 h n s) with two matrices.
        """
        tokens = self.embed(images)
        learned = [self.register_tokens, *self.register_slots]
        plain = [tokens, *(slots.expand(len(tokens), -1, -1) for slots in self.slots)]
        levels = [
            torch.cat([first.expand(len(tokens), -1, -1), level], dim=1)
            for first, level in zip(learned, plain, strict=True)
        ]
        masks: list[Tensor | None] = [None] * len(self.interactions)
        for block in self.blocks:
            levels, masks = block(levels, masks)
        skip = self.num_registers
        scores = [
            mask[..., skip[lower] :, skip[upper] :]
            for mask, (lower, upper) in zip(masks, self.interactions, strict=True)
            if mask is not None
        ]
        scores = [score[:, 0] if score.shape[1] == 1 else score for score in scores]
        return [level[:, count:] for level, count in zip(levels, skip, strict=True)], scores

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Tensor | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Refuse to encode patches: what the model returns are slots.

        Raises:
            ValueError: always.
        """
        raise ValueError("WWT returns slots instead of patches; use forward_features")

    def layer_tokens(self, output: Any) -> Float[Tensor, "b n d"]:
        """Return the patches in the output of a block."""
        return output[0][0][:, self.num_registers[0] :]

    def _save_pretrained(self, save_directory: Path) -> None:
        if len(self.task_heads):
            warnings.warn(
                "task_heads are modules, which no configuration file can hold: "
                "pass them again when the model is loaded",
                stacklevel=2,
            )
        super()._save_pretrained(save_directory)


class LevelBlock(nn.Module):
    """Attention between pairs of levels, all at once, then a feed-forward on each level."""

    def __init__(
        self,
        dim: int,
        *,
        levels: int,
        lengths: Sequence[int],
        interactions: Sequence[tuple[int, int]],
        mlp_dim: int,
        dropout: float,
        **options: Any,
    ) -> None:
        super().__init__()
        self.interactions = tuple(interactions)
        self.attentions = nn.ModuleList(
            MutualAttention(dim, lengths[upper], mlp_dim=mlp_dim, dropout=dropout, **options)
            for _, upper in self.interactions
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, bias=False) for _ in range(levels))
        self.mlp_norms = nn.ModuleList(nn.LayerNorm(dim, bias=False) for _ in range(levels))
        self.mlps = nn.ModuleList(FeedForward(dim, mlp_dim, dropout=dropout) for _ in range(levels))

    @layer
    def forward(
        self, levels: list[Float[Tensor, "b _ d"]], masks: list[Tensor | None]
    ) -> tuple[list[Float[Tensor, "b _ d"]], list[Tensor | None]]:
        """Transform the tokens of all levels and the masks of all interactions; no mask is one of zeros."""
        normed = [norm(level) for norm, level in zip(self.norms, levels, strict=True)]
        levels, found = list(levels), []
        for attention, mask, (lower, upper) in zip(self.attentions, masks, self.interactions, strict=True):
            tokens, slots, mask = attention(normed[lower], normed[upper], mask)
            levels[lower] = levels[lower] + tokens
            levels[upper] = levels[upper] + slots
            found.append(mask)
        parts = zip(levels, self.mlp_norms, self.mlps, strict=True)
        return [level + mlp(norm(level)) for level, norm, mlp in parts], found


class MutualAttention(nn.Module):
    """Attention of tokens and slots to each other by one matrix of scores, to which a mask is added.

    Args:
        num_slots: number of slots.
        normalise: weights of a slot over the tokens sum to 1.
        two_queries: tokens take by a matrix of scores of their own, and its softmax over slots.
        join_masks: the next mask is made of one matrix, which both are projected to.
        gate: multiply the output of each head by a gate.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        num_slots: int,
        *,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        dropout: float,
        normalise: bool,
        two_queries: bool,
        join_masks: bool,
        gate: bool,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.scale = dim_head**-0.5
        self.normalise = normalise
        self.queries = 1 + two_queries
        self.groups = 1 if join_masks else self.queries
        self.to_q_v_tokens = nn.Linear(dim, inner * (self.queries + 1), bias=False)
        self.to_k_v_slots = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out_tokens = nn.Linear(inner, dim)
        self.to_out_slots = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)
        self.join = nn.Linear(self.queries * heads, heads) if join_masks else None
        size = self.groups * heads * num_slots
        self.mask_norm = nn.LayerNorm(size + dim, bias=False)
        self.mask_hidden = nn.Linear(size + dim, mlp_dim)
        self.mask_out = nn.Linear(mlp_dim, size)
        self.act = nn.GELU()
        self.tokens_gate = nn.Linear(dim, heads, bias=False) if gate else None
        self.slots_gate = nn.Linear(dim, heads, bias=False) if gate else None
        init_xavier(self.to_q_v_tokens, parts=self.queries + 1)
        init_xavier(self.to_k_v_slots, parts=2)
        for linear in (self.to_out_tokens, self.to_out_slots, self.mask_hidden, self.mask_out):
            init_xavier(linear)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        slots: Float[Tensor, "b s d"],
        mask: Float[Tensor, "b g h n s"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"], Float[Tensor, "b g h n s"]]:
        """Return what tokens and slots take, and the next mask.

        Args:
            mask: added to the scores; default none.
        """
        heads = self.heads
        # (g + 1, b, h, n, e): queries of each matrix, and the values of the tokens
        *queries, token_values = (
            self.to_q_v_tokens(tokens).unflatten(-1, (self.queries + 1, heads, -1)).permute(2, 0, 3, 1, 4)
        )
        keys, slot_values = self.to_k_v_slots(slots).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.stack([q @ keys.mT for q in queries], dim=1) * self.scale
        scores = scores if mask is None else scores + mask
        # with one matrix, tokens share each slot; with two, slots share each token
        by_tokens = scores[:, 1].softmax(dim=-1) if self.queries == 2 else scores[:, 0].softmax(dim=-2)
        by_slots = scores[:, 0].softmax(dim=-1)
        if self.normalise:
            by_slots = by_slots / by_slots.sum(dim=-2, keepdim=True).clamp_min(1e-8)
        to_tokens, to_slots = by_tokens @ slot_values, by_slots.mT @ token_values
        if self.tokens_gate is not None and self.slots_gate is not None:
            to_tokens = to_tokens * self.tokens_gate(tokens).sigmoid().mT[..., None]
            to_slots = to_slots * self.slots_gate(slots).sigmoid().mT[..., None]
        token_output = self.dropout(self.to_out_tokens(merge_heads(to_tokens)))
        slot_output = self.dropout(self.to_out_slots(merge_heads(to_slots)))
        if self.join is not None:
            scores = self.join(scores.flatten(1, 2).movedim(1, -1)).movedim(-1, 1)[:, None]
        # of each token, the scores of all matrices, heads and slots
        flat = scores.permute(0, 3, 1, 2, 4).flatten(2)
        x = self.mask_norm(torch.cat([flat, tokens + token_output], dim=-1))
        x = self.dropout(self.mask_out(self.dropout(self.act(self.mask_hidden(x)))))
        return token_output, slot_output, x.unflatten(-1, (self.groups, heads, -1)).permute(0, 2, 3, 1, 4)


class AutoencodingHead(nn.Module):
    """Carry features from level to level along the scores, such as from slots back to the patches.

    Args:
        image_size: height and width of the images, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width) in pixels.
        decoder: acts on what arrives; default nothing.
        pathways: sequences of levels, each rising or falling; default from each level that the patches
            interact with to the patches.
        patch_pathway_id: level of the patches, whose features become a map.
        channel_first: maps are (b d h w) instead of (b h w d).

    Raises:
        ValueError: if a pathway neither rises nor falls.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        decoder: nn.Module | None = None,
        pathways: Sequence[Sequence[int]] | None = None,
        patch_pathway_id: int = 0,
        channel_first: bool = False,
    ) -> None:
        super().__init__()
        for pathway in pathways or ():
            steps = {(after > before) - (after < before) for before, after in pairwise(pathway)}
            if steps not in ({1}, {-1}):
                raise ValueError(f"a pathway must rise or fall from level to level, got {tuple(pathway)}")
        self.grid = PatchGrid(pair(image_size), pair(patch_size)).shape
        self.pathways = None if pathways is None else tuple(map(tuple, pathways))
        self.patch_pathway_id = patch_pathway_id
        self.channel_first = channel_first
        self.decoder = nn.Identity() if decoder is None else decoder

    def forward(
        self,
        levels: Sequence[Float[Tensor, "b _ d"]],
        masks: Sequence[Tensor],
        interactions: Sequence[Sequence[int]],
    ) -> Any:
        """Return what arrives at the end of each pathway; of a single one, alone.

        Args:
            levels: features of all levels.
            masks: scores of all interactions.
            interactions: pairs of levels, the lower one first.

        Raises:
            ValueError: if there is no pathway, or two of its levels do not interact.
        """
        patches = self.patch_pathway_id
        scores = {
            (lower, upper): mask.flatten(1, -3).mean(dim=1)
            for (lower, upper), mask in zip(interactions, masks, strict=True)
        }
        pathways = self.pathways
        if pathways is None:
            pathways = tuple((upper, patches) for lower, upper in scores if lower == patches)
        if not pathways:
            raise ValueError(f"there is no pathway to level {patches}, got interactions {list(scores)}")
        found = tuple(self.decoder(self._carry(pathway, levels, scores)) for pathway in pathways)
        return found[0] if len(found) == 1 else found

    def _carry(
        self, pathway: Sequence[int], levels: Sequence[Tensor], scores: dict[tuple[int, int], Tensor]
    ) -> Tensor:
        x = levels[pathway[0]]
        for before, after in pairwise(pathway):
            ends = (min(before, after), max(before, after))
            if ends not in scores:
                raise ValueError(f"levels {ends} of pathway {tuple(pathway)} do not interact")
            score = scores[ends] if after < before else scores[ends].mT
            x = score.softmax(dim=-1) @ x
        if pathway[-1] != self.patch_pathway_id:
            return x
        x = x.unflatten(1, self.grid)
        return x.movedim(-1, 1) if self.channel_first else x


def _per_level(name: str, value: Any, levels: int) -> tuple[int, ...]:
    """Return one value per level of slots.

    Raises:
        ValueError: if there are not as many as levels.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{name} must be one for each of {levels} levels of slots, got {values}")
    return values
