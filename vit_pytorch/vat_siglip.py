"""VAT around SigLIP: actions that read every layer of a SigLIP tower.

W. Li, C. Ma, H. Chen, W. Mao 2025, arXiv:2512.06013.

The tower is that of SigLIP (X. Zhai et al. 2023, arXiv:2303.15343). The policy is that of `vat` in the form
that the public package gives it: one token for each action of the chunk, beside registers, a token of the
advantage and one of the robot's state; they attend to each other, and what they read passes gates of the
heads (Z. Qiu et al. 2025, arXiv:2505.06708). FiLM acts on the tokens themselves. With the true actions, the
call returns the L1 loss.

Family: policy
Differs from the paper: the form of the policy is the public package's (`vit_pytorch.vat` has the paper's).
Differs from the public package: FiLM starts as the identity, where there it starts by multiplying every token
by zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import CrossAttention
from vit_pytorch.layers.blocks import FeedForward, is_tracing, layer
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.vat import join_views, learned_table, single_images
from vit_pytorch.vit import ViT
from vit_pytorch.weights import init_empty_weights


class SigLIPVAT(nn.Module):
    """A policy that reads the layers of a SigLIP tower: from images of what a robot sees to its next actions.

    Args:
        dim: dimension of the policy's tokens.
        depth: number of its layers.
        heads: number of heads that read; each has `dim_head` channels.
        dim_action: numbers of an action.
        num_views: views of the scene, each seen on its own.
        num_tasks: number of tasks, which are passed by number; None for a policy of one task.
        dim_extra_token: numbers of a further input, such as the robot's state; None for none.
        num_register_tokens: number of register tokens.
        action_chunk_len: actions that are predicted at once.
        time_seq_len: times, from the first to the present one, each seen on its own.
        add_self_attn: tokens attend to each other in each layer, with `self_attn_heads` of
            `self_attn_dim_head` channels.
        vit_layer_indices: for each layer, after how many of the tower's blocks it reads: 0 the input of the
            first, `siglip_depth` the output of the final norm; default the input of the block beside it.
        num_advantage_bins: number of degrees of advantage on which actions can be conditioned; 0 for none.
        siglip_image_size: size of the tower's images in pixels; likewise its other arguments.

    Raises:
        ValueError: if there is not one index for each layer, or one is outside the tower.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        dim: int = 512,
        depth: int = 27,
        heads: int = 8,
        dim_head: int = 64,
        dim_action: int = 32,
        mlp_dim: int = 2048,
        num_views: int = 1,
        num_tasks: int | None = None,
        dim_extra_token: int | None = None,
        num_register_tokens: int = 4,
        action_chunk_len: int = 50,
        time_seq_len: int = 1,
        dropout: float = 0.0,
        add_self_attn: bool = True,
        self_attn_heads: int = 4,
        self_attn_dim_head: int = 32,
        vit_layer_indices: Sequence[int] | None = None,
        num_advantage_bins: int = 0,
        siglip_image_size: int = 224,
        siglip_patch_size: int = 14,
        siglip_dim: int = 1152,
        siglip_depth: int = 27,
        siglip_heads: int = 16,
        siglip_mlp_dim: int = 4304,
        siglip_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.vit = ViT(
            image_size=siglip_image_size,
            patch_size=siglip_patch_size,
            num_classes=0,
            dim=siglip_dim,
            depth=siglip_depth,
            heads=siglip_heads,
            dim_head=siglip_dim // siglip_heads,
            mlp_dim=siglip_mlp_dim,
            act="gelu_tanh",
            norm_eps=siglip_norm_eps,
            pool="mean",
        )
        self.reads = check_reads("vit_layer_indices", vit_layer_indices, depth, siglip_depth)
        self.scene = Scene(siglip_dim, views=num_views, frames=time_seq_len)
        self.decoder = ActionDecoder(
            dim,
            (siglip_dim,),
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dim_action=dim_action,
            chunk=action_chunk_len,
            num_registers=num_register_tokens,
            num_tasks=num_tasks,
            dim_extra=dim_extra_token,
            advantages=num_advantage_bins,
            self_heads=self_attn_heads if add_self_attn else 0,
            self_dim_head=self_attn_dim_head,
            dropout=dropout,
        )

    def load_siglip(self, checkpoint: Any = "hf-hub:google/siglip-so400m-patch14-224") -> Any:
        """Load the tower's published weights, without its attention pool and the tower of texts.

        Args:
            checkpoint: a repository, file, folder or state dict (see `load_pretrained`).

        Returns:
            A `LoadReport`.

        Raises:
            ValueError: if they do not fit (see `load_pretrained`).
        """
        with init_empty_weights():
            whole = ViT(**{**self.vit.config, "pool": "map"})
        # checkpoints are known above the models
        report = import_module("vit_pytorch.pretrained").load_pretrained(whole, checkpoint)
        own = self.vit.state_dict()
        self.vit.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in own})
        return report

    def forward(
        self,
        video_or_image: Float[Tensor, "b ..."],
        *,
        extra: Float[Tensor, "b s"] | None = None,
        tasks: Int[Tensor, " b"] | None = None,
        advantages: Int[Tensor, " b"] | int | None = None,
        actions: Float[Tensor, "b chunk a"] | None = None,
        return_hiddens: bool = False,
        freeze_vit: bool = False,
    ) -> Any:
        """Predict the next actions.

        Args:
            video_or_image: (b, views, c, times, height, width); the axes of views and of times may be left
                out if there is one of them.
            extra: a further input, such as the robot's state.
            tasks: the number of each sample's task.
            advantages: the degree of advantage on which actions are conditioned, from 0; -1 for none.
            actions: the true actions.
            return_hiddens: return the tokens before the first and after each layer, too.
            freeze_vit: compute no gradients of the tower.

        Returns:
            The actions (b, chunk, a); in a tuple with the tokens (depth + 1, b, n, dim), if asked for; or the
            L1 loss, if true actions are given.

        Raises:
            ValueError: if an input is not what the policy takes.
        """
        with torch.no_grad() if freeze_vit else nullcontext():
            layers = self.see(video_or_image)
        contexts = [(self.scene(layers[index]),) for index in self.reads]
        predicted, hiddens = self.decoder(contexts, tasks=tasks, extra=extra, advantages=advantages)
        return answer(predicted, hiddens, actions, return_hiddens)

    def see(self, images: Float[Tensor, "b ..."]) -> dict[int, Float[Tensor, "s n c"]]:
        """Return the tokens of the tower after those numbers of blocks that are read."""
        single = single_images(images, views=self.scene.views, frames=self.scene.frames)
        tokens = self.vit.embed(single)
        inputs = self.vit.block_inputs(self.vit.grid.fit(single.shape[2:]))
        return read_layers(self.vit.blocks, self.vit.norm, tokens, self.reads, inputs)


class ActionDecoder(nn.Module):
    """Tokens of actions, which read the layers of one or more encoders.

    Args:
        dim: dimension of a token.
        context_dims: dimension of each encoder's tokens.
        depth: number of layers.
        chunk: number of actions.
        dim_action: numbers of an action.
        num_tasks: number of tasks; None for one.
        dim_extra: numbers of a further input; None for none.
        advantages: number of degrees of advantage; 0 for none.
        self_heads: number of heads with which tokens attend to each other; 0 for none.
        gated_self_attn: those heads have gates, too.
        options: arguments of `ReadingLayer`.
    """

    def __init__(
        self,
        dim: int,
        context_dims: Sequence[int],
        *,
        depth: int,
        dim_action: int,
        chunk: int,
        num_registers: int,
        num_tasks: int | None,
        dim_extra: int | None,
        advantages: int,
        **options: Any,
    ) -> None:
        super().__init__()
        self.registers = learned_table(num_registers, dim)
        self.action_tokens = learned_table(chunk, dim)
        self.task_embed = None if num_tasks is None else nn.Embedding(num_tasks, dim)
        # the first is of no known advantage
        self.advantage_embed = nn.Embedding(advantages + 1, dim) if advantages else None
        self.to_extra = None if dim_extra is None else nn.Linear(dim_extra, dim)
        self.blocks = nn.ModuleList(
            ReadingLayer(dim, context_dims, film=num_tasks is not None, **options) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.to_actions = nn.Linear(dim, dim_action, bias=False)
        init_xavier(self.to_actions)

    def forward(
        self,
        contexts: Sequence[tuple[Tensor, ...]],
        *,
        tasks: Int[Tensor, " b"] | None = None,
        extra: Float[Tensor, "b s"] | None = None,
        advantages: Int[Tensor, " b"] | int | None = None,
    ) -> tuple[Float[Tensor, "b chunk a"], Float[Tensor, "l b n d"]]:
        """Return actions, and the tokens before the first and after each layer.

        Args:
            contexts: for each layer the tokens of each encoder.
            tasks: the number of each sample's task; None for tokens that no task conditions.
            extra: the further input.
            advantages: degrees of advantage.

        Raises:
            ValueError: if there is an input that the policy does not have.
        """
        for name, value, part, option in (
            ("tasks", tasks, self.task_embed, "num_tasks"),
            ("extra", extra, self.to_extra, "dim_extra_token"),
            ("advantages", advantages, self.advantage_embed, "num_advantage_bins"),
        ):
            if value is not None and part is None:
                raise ValueError(f"this policy takes no {name}: build it with {option}")
        batch = contexts[0][0].shape[0]
        task = None
        if tasks is not None and self.task_embed is not None:
            check_numbers("tasks", tasks, 0, self.task_embed.num_embeddings - 1, batch)
            task = self.task_embed(tasks)[:, None]
        parts = [self.registers.expand(batch, -1, -1), self.action_tokens.expand(batch, -1, -1)]
        start = self.registers.shape[0]
        if advantages is not None and self.advantage_embed is not None:
            if isinstance(advantages, int):
                advantages = torch.full((batch,), advantages, device=parts[0].device)
            check_numbers("advantages", advantages, -1, self.advantage_embed.num_embeddings - 2, batch)
            parts.insert(1, self.advantage_embed(advantages + 1)[:, None])
            start += 1
        if extra is not None and self.to_extra is not None:
            parts.append(self.to_extra(extra)[:, None])
        hiddens = [torch.cat(parts, dim=1)]
        for block, context in zip(self.blocks, contexts, strict=True):
            hiddens.append(block(hiddens[-1], context, task))
        actions = hiddens[-1][:, start : start + self.action_tokens.shape[0]]
        return self.to_actions(self.norm(actions)), torch.stack(hiddens)


class ReadingLayer(nn.Module):
    """A layer of tokens that read encoders: FiLM, attention to each encoder, to each other, a feed-forward.

    Args:
        context_dims: dimension of each encoder's tokens.
        film: tokens are conditioned on a task.
        self_heads: number of heads with which tokens attend to each other; 0 for none.
        gated_self_attn: those heads have gates, too.
        dropout: dropout after the projections of attention, in [0, 1).
        ff_dropout: dropout after the linear layers of the feed-forward, in [0, 1).
        norm_eps: epsilon of the norms before attention and feed-forward.
    """

    def __init__(
        self,
        dim: int,
        context_dims: Sequence[int],
        *,
        film: bool,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        self_heads: int,
        self_dim_head: int,
        gated_self_attn: bool = False,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        ff_dropout: float = 0.0,
        norm_eps: float = 1e-6,
        act: str = "gelu_tanh",
    ) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=norm_eps)
        sizes: dict[str, Any] = {"qkv_bias": qkv_bias, "dropout": dropout}
        self.film = LinearFiLM(dim) if film else None
        self.norms = nn.ModuleList(norm(dim) for _ in context_dims)
        self.context_norms = nn.ModuleList(norm(context) for context in context_dims)
        self.attentions = nn.ModuleList(
            GatedCrossAttention(dim, context, heads=heads, dim_head=dim_head, **sizes)
            for context in context_dims
        )
        kind = GatedCrossAttention if gated_self_attn else CrossAttention
        self.self_norm = norm(dim) if self_heads else None
        self.self_attention = (
            kind(dim, heads=self_heads, dim_head=self_dim_head, **sizes) if self_heads else None
        )
        self.norm2 = norm(dim)
        self.feedforward = FeedForward(dim, mlp_dim, dropout=ff_dropout, act=act)

    @layer
    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        contexts: tuple[Tensor, ...],
        task: Float[Tensor, "b 1 d"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Transform tokens.

        Args:
            contexts: the tokens of each encoder.
            task: the task's embedding.
        """
        if self.film is not None and task is not None:
            tokens = self.film(tokens, task)
        parts = zip(self.norms, self.context_norms, self.attentions, contexts, strict=True)
        for norm, context_norm, attention, context in parts:
            tokens = tokens + attention(norm(tokens), context_norm(context))
        if self.self_attention is not None and self.self_norm is not None:
            normed = self.self_norm(tokens)
            tokens = tokens + self.self_attention(normed, normed)
        return tokens + self.feedforward(self.norm2(tokens))


class GatedCrossAttention(CrossAttention):
    """Attention to another sequence, each head's output times a gate that its token computes.

    Qiu et al. 2025, arXiv:2505.06708, section 2.2, a gate for each head.
    """

    def __init__(self, dim: int, context_dim: int | None = None, **options: Any) -> None:
        super().__init__(dim, context_dim, **options)
        self.to_gates = nn.Linear(dim, self.heads)
        init_xavier(self.to_gates)

    def forward(self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n c"]) -> Float[Tensor, "b m d"]:
        """Attend from each token to all tokens of the context."""
        gates = self.to_gates(x).sigmoid().mT.unsqueeze(-1)
        return self.merge(self.kernel(*self.project(x, context)) * gates)


class LinearFiLM(nn.Module):
    """tokens * (gain + 1) + shift, with gain and shift linear in the task; starts as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "b n d"], task: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b n d"]:
        """Modulate all tokens of a sample in the same way."""
        gain, shift = self.linear(task).chunk(2, dim=-1)
        return tokens * (gain + 1) + shift


class Scene(nn.Module):
    """The tokens of all views and times of a sample in one sequence, with embeddings of both.

    Args:
        dim: dimension of a token.
        views: number of views.
        frames: number of times.
    """

    def __init__(self, dim: int, *, views: int, frames: int = 1) -> None:
        super().__init__()
        self.views = views
        self.frames = frames
        self.view_embed = learned_table(views, 1, 1, dim) if views > 1 else None
        self.frame_embed = learned_table(frames, 1, dim) if frames > 1 else None

    def forward(self, tokens: Float[Tensor, "s n c"]) -> Float[Tensor, "b m c"]:
        """Join the tokens of the views and times of each sample."""
        return join_views(tokens, self.views, self.frames, self.view_embed, self.frame_embed)


def read_layers(
    blocks: nn.ModuleList, norm: nn.Module, tokens: Tensor, reads: Sequence[int], *inputs: Any
) -> dict[int, Tensor]:
    """Return tokens after those numbers of blocks that are read; those after all of them are normed."""
    found = {0: tokens}
    for index, block in enumerate(blocks[: max(reads)], 1):
        tokens = block(tokens, *inputs)
        found[index] = norm(tokens) if index == len(blocks) else tokens
    return found


def check_reads(name: str, given: Sequence[int] | None, depth: int, encoder_depth: int) -> tuple[int, ...]:
    """Return what each layer reads, by number of blocks of an encoder.

    Raises:
        ValueError: if there is not one for each layer, or one is outside the encoder.
    """
    reads = tuple(range(depth) if given is None else given)
    if len(reads) != depth or not all(0 <= index <= encoder_depth for index in reads):
        raise ValueError(f"{name} must be {depth} numbers in [0, {encoder_depth}], got {reads}")
    return reads


def check_numbers(name: str, numbers: Tensor, least: int, most: int, batch: int) -> None:
    """Check numbers of tasks or of degrees of advantage.

    Raises:
        ValueError: if there is not one for each sample, or one is out of range.
    """
    if is_tracing(numbers):
        return
    fits = numbers.shape == (batch,) and not numbers.is_floating_point()
    if not fits or numbers.min() < least or numbers.max() > most:
        raise ValueError(
            f"{name} must be {batch} integers in [{least}, {most}], got {numbers.tolist()} of {numbers.dtype}"
        )


def answer(predicted: Tensor, hiddens: Tensor, actions: Tensor | None, return_hiddens: bool) -> Any:
    """Return what a policy's call does: actions, with the tokens if asked for, or the loss.

    Raises:
        ValueError: if the true actions have another shape.
    """
    if actions is None:
        return (predicted, hiddens) if return_hiddens else predicted
    if actions.shape != predicted.shape:
        raise ValueError(f"expected actions of shape {tuple(predicted.shape)}, got {tuple(actions.shape)}")
    return F.l1_loss(predicted, actions)
