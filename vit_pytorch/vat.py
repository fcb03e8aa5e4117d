"""VAT: Vision Action Transformer by Unlocking Full Representation of ViT.

W. Li, C. Ma, H. Chen, W. Mao 2025, arXiv:2512.06013.

Beside each layer of a ViT there is a layer of action tokens. They attend to the input of the ViT's layer, in
all views and at all times, and in the end predict a chunk of a robot's next actions. The patches never see
them. FiLM conditions each layer on the task.

Family: policy
Differs from the paper: the views and times of patches have embeddings of their own where there are several. A
norm of its own acts on what an action layer reads, where the authors' code shares the ViT layer's. The last
layer of FiLM starts at zero (`film_std`), so that tokens pass it unchanged. Neither the diffusion head nor
the token of the robot's state is implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_pytorch.base import CONFIG_NAME, WEIGHTS_NAME
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import Attention, CrossAttention
from vit_pytorch.layers.blocks import FeedForward, fx_leaf, is_tracing, layer, set_grad_checkpointing
from vit_pytorch.layers.init import init_embeddings
from vit_pytorch.vit import ViT
from vit_pytorch.weights import (
    CHECKSUMS,
    load_weights,
    read_safetensors,
    read_settings,
    verify_checksum,
    write_bundle,
)
from vit_pytorch.xcit import XCiT

# What a plain model has before its blocks; the rest comes after them.
STEM = ("patch_embed", "prefix", "positions", "dropout", "pre_norm", "rotary", "relative", "blocks")


class VAT(nn.Module):
    """A policy around a model of one sequence: from images of what a robot sees to its next actions.

    The model is the object passed in; its blocks must keep every token. If it is frozen
    (`vit.requires_grad_(False)`), only the action layers learn; otherwise it learns with them. What no action
    layer reads is not run, and is frozen: the blocks after the last one read, the final norm, the head.

    Args:
        vit: the vision model, with its weights.
        action_dim: numbers of an action.
        action_chunk: actions that are predicted at once.
        dim: dimension of an action token; default that of the vision tokens.
        mlp_dim: hidden dimension of the action layers' feed-forward; default 4 * `dim`.
        vit_layer_indices: for each action layer, after how many of the model's blocks it reads; 0 reads the
            input of the first. None for a layer beside each block, which reads the input of that block.
        num_views: views of the scene, each seen by the model on its own.
        frames: times, from the first to the present one, each seen on its own.
        num_tasks: number of tasks, which are passed by number; None for a policy of one task.
        use_film: condition each layer on the task by FiLM; otherwise the task is added to the action tokens.
        film_std: standard deviation of the initial weights of FiLM's last layers; the authors' code has 0.02.
        self_attn: action tokens attend to each other in each layer, which in the paper they do not.

    Raises:
        ValueError: if the model drops tokens, a layer is outside of it, or a number is below 1.
    """

    @checks_arguments
    def __init__(
        self,
        vit: IsotropicModel,
        *,
        action_dim: int,
        action_chunk: int = 8,
        dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        mlp_dim: int | None = None,
        vit_layer_indices: Sequence[int] | None = None,
        num_views: int = 1,
        frames: int = 1,
        num_tasks: int | None = None,
        use_film: bool = True,
        film_std: float = 0.0,
        self_attn: bool = False,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if not isinstance(vit, IsotropicModel) or not has_plain_loop(vit):
            raise ValueError(
                f"vit must be a model of one sequence whose blocks keep every token, got {type(vit).__name__}"
            )
        depth = len(vit.blocks)
        reads = tuple(range(depth) if vit_layer_indices is None else vit_layer_indices)
        if max(reads) > depth:
            raise ValueError(f"vit_layer_indices must be in [0, {depth}], got {reads}")
        vision_dim = vit.num_features
        dim = vision_dim if dim is None else dim
        self.config: dict[str, Any] = {
            "action_dim": action_dim,
            "action_chunk": action_chunk,
            "dim": dim,
            "heads": heads,
            "dim_head": dim_head,
            "mlp_dim": mlp_dim,
            "vit_layer_indices": list(reads),
            "num_views": num_views,
            "frames": frames,
            "num_tasks": num_tasks,
            "use_film": use_film,
            "film_std": film_std,
            "self_attn": self_attn,
            "dropout": dropout,
            "norm_eps": norm_eps,
        }
        self.vit = vit
        self.reads = reads
        self.num_views = num_views
        self.frames = frames

        # One token for each number of each action. They start far apart by action, close together by number.
        steps = torch.randn(action_chunk, 1, dim) * 5 + torch.randn(1, action_dim, dim) * 0.5
        self.action_tokens = nn.Parameter(steps.flatten(0, 1)[None] * dim**-0.5)
        self.view_embed = learned_table(num_views, 1, 1, vision_dim) if num_views > 1 else None
        self.frame_embed = learned_table(frames, 1, vision_dim) if frames > 1 else None
        self.task_embed = None if num_tasks is None else nn.Embedding(num_tasks, dim)
        self.use_film = use_film
        sizes: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "dropout": dropout}
        self.blocks = nn.ModuleList(
            ActionBlock(
                dim,
                vision_dim,
                CrossAttention(dim, vision_dim, **sizes),
                FeedForward(dim, mlp_dim or 4 * dim, dropout=dropout),
                film=FiLM(dim, std=film_std) if num_tasks is not None and use_film else None,
                self_attention=Attention(dim, **sizes) if self_attn else None,
                norm=partial(nn.LayerNorm, eps=norm_eps),
            )
            for _ in reads
        )
        self.head = ActionHead(dim, action_dim, hidden_dim=dim)
        _freeze_unread(vit, max(reads))

    def forward(
        self, images: Float[Tensor, "b ..."], tasks: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b chunk a"]:
        """Predict the next actions.

        Args:
            images: (b, views, c, times, height, width); the axes of views and of times may be left out if
                there is one of them.
            tasks: the number of each sample's task, if the policy knows several.

        Raises:
            ValueError: if the images are not what the model takes, or tasks are missing or unexpected.
        """
        vision = self.see(images)
        task = self._embed_tasks(tasks, images.shape[0])
        tokens = self.action_tokens.expand(images.shape[0], -1, -1)
        if task is not None and not self.use_film:
            tokens = tokens + task
        for block, index in zip(self.blocks, self.reads, strict=True):
            tokens = block(tokens, vision[index], task)
        return self.head(tokens)

    def see(self, images: Float[Tensor, "b ..."]) -> dict[int, Float[Tensor, "b n c"]]:
        """Return the vision tokens that action layers read, of all views and times, by number of blocks."""
        single = single_images(images, views=self.num_views, frames=self.frames)
        tokens = self.vit.embed(single)
        inputs = self.vit.block_inputs(self.vit.grid.fit(single.shape[2:]))
        found = {0: self._place(tokens)} if 0 in self.reads else {}
        for index in range(1, max(self.reads) + 1):
            tokens = self.vit.blocks[index - 1](tokens, inputs)
            if index in self.reads:
                found[index] = self._place(tokens)
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        set_grad_checkpointing(self, enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of more than one axis without weight decay: tokens and positions."""
        own = {"action_tokens", "view_embed", "frame_embed", "task_embed.weight"}
        names = {name for name, _ in self.named_parameters()}
        return (names & own) | {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy's weights, its model's among them, as safetensors with its configuration."""
        folder = Path(folder)
        save = partial(save_file, self.state_dict(), metadata={"format": "pt"})
        write_bundle(folder / WEIGHTS_NAME, folder / CONFIG_NAME, self.config, save)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, vit: IsotropicModel) -> VAT:
        """Build a policy from a folder that `save_pretrained` wrote; in eval mode.

        Args:
            vit: a model of the same architecture; its weights are replaced by those written.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is damaged, or the model is another.
        """
        weights, config = Path(folder) / WEIGHTS_NAME, Path(folder) / CONFIG_NAME
        settings = read_settings(config)
        verify_checksum(weights, settings)
        policy = cls(vit, **{name: value for name, value in settings.items() if name not in CHECKSUMS})
        load_weights(policy, read_safetensors(weights), source=str(weights))
        return policy.eval()

    def _place(self, tokens: Float[Tensor, "s n c"]) -> Float[Tensor, "b m c"]:
        """Concatenate the tokens of all views and times of a sample, with the embeddings of both."""
        return join_views(tokens, self.num_views, self.frames, self.view_embed, self.frame_embed)

    def _embed_tasks(self, tasks: Tensor | None, samples: int) -> Float[Tensor, "b 1 d"] | None:
        if self.task_embed is None:
            if tasks is not None:
                raise ValueError(f"this policy has one task (num_tasks=None), got tasks {tuple(tasks.shape)}")
            return None
        known = self.task_embed.num_embeddings
        if tasks is not None and is_tracing(tasks):
            return self.task_embed(tasks)[:, None]
        if tasks is None or tasks.shape != (samples,) or tasks.is_floating_point():
            got = None if tasks is None else f"{tasks.dtype} of shape {tuple(tasks.shape)}"
            raise ValueError(f"expected the task, 0 to {known - 1}, of each of {samples} samples, got {got}")
        return self.task_embed(tasks)[:, None]


class ActionBlock(nn.Module):
    """A layer of action tokens: FiLM, attention to the vision tokens, and a feed-forward.

    FiLM acts on the input of the attention, not on the residual stream.

    Args:
        vision_dim: dimension of a vision token.
        attention: from action tokens to vision tokens.
        film: conditions on the task; None for none.
        self_attention: among action tokens; None for none.
    """

    def __init__(
        self,
        dim: int,
        vision_dim: int,
        attention: CrossAttention,
        feedforward: FeedForward,
        *,
        film: FiLM | None = None,
        self_attention: Attention | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.film = film
        self.norm1 = norm(dim)
        self.context_norm = norm(vision_dim)
        self.attention = attention
        self.self_norm = None if self_attention is None else norm(dim)
        self.self_attention = self_attention
        self.norm2 = norm(dim)
        self.feedforward = feedforward

    @layer
    def forward(
        self,
        tokens: Float[Tensor, "b m d"],
        vision: Float[Tensor, "b n c"],
        task: Float[Tensor, "b 1 d"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Transform action tokens.

        Args:
            vision: vision tokens, of all views and times.
            task: the task's embedding, if there is FiLM.
        """
        x = tokens if self.film is None or task is None else self.film(tokens, task)
        tokens = tokens + self.attention(self.norm1(x), self.context_norm(vision))
        if self.self_attention is not None and self.self_norm is not None:
            tokens = tokens + self.self_attention(self.self_norm(tokens))
        return tokens + self.feedforward(self.norm2(tokens))


class FiLM(nn.Module):
    """tokens * (gain + 1) + shift, with gain and shift from the task (Perez et al. 2017, arXiv:1709.07871).

    Args:
        dim: dimension of a token, and of the task's embedding.
        std: standard deviation of the last layer's initial weights; with 0, tokens pass unchanged at first.
    """

    def __init__(self, dim: int, *, std: float = 0.0) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.to_out = nn.Linear(4 * dim, 2 * dim)
        nn.init.normal_(self.to_hidden.weight, std=0.02)
        nn.init.normal_(self.to_out.weight, std=std)
        for linear in (self.to_hidden, self.to_out):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Float[Tensor, "b n d"], task: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b n d"]:
        """Modulate all tokens of a sample in the same way."""
        gain, shift = self.to_out(self.act(self.to_hidden(task))).chunk(2, dim=-1)
        return tokens * (gain + 1) + shift


class ActionHead(nn.Module):
    """Predict an action from the concatenated tokens of its numbers: a small residual network.

    Args:
        action_dim: numbers of an action.
    """

    def __init__(self, dim: int, action_dim: int, *, hidden_dim: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        inner = action_dim * dim
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.action_dim = action_dim
        self.layers = nn.Sequential(
            norm(inner),
            nn.Linear(inner, hidden_dim),
            nn.ReLU(),
            *(ResidualLayer(hidden_dim, norm=norm) for _ in range(2)),
            norm(hidden_dim),
            nn.Linear(hidden_dim, action_dim),
        )

    def forward(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b chunk a"]:
        """Return actions from the tokens of their numbers, action by action."""
        return self.layers(tokens.unflatten(1, (-1, self.action_dim)).flatten(2))


class ResidualLayer(nn.Module):
    """x + relu(linear(norm(x)))."""

    def __init__(self, dim: int, *, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform vectors."""
        return x + F.relu(self.linear(self.norm(x)))


@fx_leaf
def single_images(images: Float[Tensor, "b ..."], *, views: int, frames: int) -> Float[Tensor, "s c h w"]:
    """Put the images of all views and times in the batch, one after the other.

    Raises:
        ValueError: if the rank, or the number of views or times, is another.
    """
    rank = 4 + (views > 1) + (frames > 1)
    if images.ndim not in (rank, 6):
        raise ValueError(
            f"expected images of rank {rank} or 6 (batch, {views} views, channels, {frames} times, "
            f"height, width), got shape {tuple(images.shape)}"
        )
    if images.ndim < 6 and frames == 1:
        images = images.unsqueeze(-3)
    if images.ndim < 6:
        images = images.unsqueeze(1)
    if (images.shape[1], images.shape[3]) != (views, frames):
        raise ValueError(
            f"expected {views} views and {frames} times, got {images.shape[1]} and {images.shape[3]}"
        )
    return images.transpose(2, 3).flatten(0, 2)


def has_plain_loop(model: IsotropicModel) -> bool:
    """Return whether the blocks of a model are simply applied one after the other to what it embeds."""
    if isinstance(model, ViT):
        return model.streams is None and not model.value_residual
    return type(model).encode in (IsotropicModel.encode, XCiT.encode)


def join_views(
    tokens: Float[Tensor, "s n c"], views: int, frames: int, *embeddings: Tensor | None
) -> Float[Tensor, "b m c"]:
    """Concatenate the tokens of all views and times of each sample, with the embeddings that there are."""
    tokens = tokens.unflatten(0, (-1, views, frames))
    for embedding in embeddings:
        if embedding is not None:
            tokens = tokens + embedding
    return tokens.flatten(1, 3)


def learned_table(*shape: int) -> nn.Parameter:
    """Return a table of embeddings with their initial values."""
    table = nn.Parameter(torch.empty(*shape))
    init_embeddings(table)
    return table


def _freeze_unread(vit: IsotropicModel, last: int) -> None:
    """Freeze what comes after the first `last` blocks of a model, which nothing reads."""
    unread: list[nn.Module] = [part for name, part in vit.named_children() if name not in STEM]
    unread += list(vit.blocks)[last:]
    if not vit.num_encoder_prefix_tokens:
        unread.append(vit.prefix)
    for part in unread:
        part.requires_grad_(False)
