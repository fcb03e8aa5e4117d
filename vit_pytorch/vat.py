"""VAT: Vision Action Transformer by Unlocking Full Representation of ViT.

W. Li, C. Ma, H. Chen, W. Mao 2025, arXiv:2512.06013.

Beside every layer of a ViT stands a layer of action tokens. They attend to what enters the ViT's layer, in
all views and at all times, and in the end predict a chunk of a robot's next actions. The patches never see
them. FiLM tells each layer the task.

Family: policy
Differs from the paper: the views and times of patches have embeddings of their own where there are several. A
norm of its own stands before what an action layer reads, where the authors' code shares the ViT layer's. The
last layer of FiLM starts at zero (`film_std`), so that tokens pass it unchanged. Neither the diffusion head
nor the token of the robot's state is here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_pytorch.base import CONFIG_NAME, WEIGHTS_NAME
from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import Attention, CrossAttention, FusedAttention
from vit_pytorch.layers_v01.blocks import Encoder, FeedForward, Residual
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.weights import load_weights, read_safetensors

# What of a plain model stands in front of its blocks; the rest comes behind them.
FRONT = ("patch_embed", "prefix", "positions", "dropout", "pre_norm", "encoder")


class FiLM(nn.Module):
    """tokens * (gain + 1) + shift, with gain and shift from the task (Perez et al. 2017, arXiv:1709.07871).

    Args:
        dim: width of a token, and of the task's embedding.
        std: standard deviation that the last layer's weights start with; with 0, tokens pass unchanged.
    """

    def __init__(self, dim: int, *, std: float = 0.0) -> None:
        super().__init__()
        self.to_hidden = Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.to_out = Linear(4 * dim, 2 * dim)
        nn.init.normal_(self.to_hidden.weight, std=0.02)
        nn.init.normal_(self.to_out.weight, std=std)
        for linear in (self.to_hidden, self.to_out):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Float[Tensor, "b n d"], task: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b n d"]:
        """Modulate all tokens of a sample alike."""
        gain, shift = self.to_out(self.act(self.to_hidden(task))).chunk(2, dim=-1)
        return tokens * (gain + 1) + shift


class ActionBlock(nn.Module):
    """A layer of action tokens: FiLM, attention to the vision tokens, and a feed-forward.

    FiLM acts on what enters the attention, not on the residual stream.

    Args:
        attention: from action tokens to vision tokens.
        feedforward: residual of every action token by itself.
        norm: norm of action tokens in front of the attention.
        context_norm: norm of vision tokens in front of it.
        film: tells the task; None for none.
        mix: residual in which action tokens attend to each other; None for none.
    """

    def __init__(
        self,
        attention: CrossAttention,
        feedforward: Residual,
        *,
        norm: nn.Module,
        context_norm: nn.Module,
        film: FiLM | None = None,
        mix: Residual | None = None,
    ) -> None:
        super().__init__()
        self.film = film
        self.norm = norm
        self.context_norm = context_norm
        self.attention = attention
        self.mix = mix
        self.feedforward = feedforward

    def forward(
        self,
        tokens: Float[Tensor, "b m d"],
        vision: Float[Tensor, "b n c"],
        task: Float[Tensor, "b 1 d"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Give the action tokens.

        Args:
            tokens: action tokens.
            vision: vision tokens, of all views and times.
            task: the task's embedding, where there is FiLM.
        """
        told = tokens if self.film is None or task is None else self.film(tokens, task)
        tokens = tokens + self.attention(self.norm(told), self.context_norm(vision))
        if self.mix is not None:
            tokens = self.mix(tokens)
        return self.feedforward(tokens)


class ActionHead(nn.Module):
    """Predict an action from the tokens of its numbers, one after the other: a small residual network.

    Args:
        dim: width of a token.
        action_dim: numbers of an action.
        hidden_dim: width inside.
        norm_eps: epsilon of the LayerNorms.
    """

    def __init__(self, dim: int, action_dim: int, *, hidden_dim: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        width = action_dim * dim
        norm = partial(nn.LayerNorm, hidden_dim, eps=norm_eps)
        self.action_dim = action_dim
        self.layers = nn.Sequential(
            nn.LayerNorm(width, eps=norm_eps),
            Linear(width, hidden_dim),
            nn.ReLU(),
            *(Residual(nn.Sequential(Linear(hidden_dim, hidden_dim), nn.ReLU()), norm()) for _ in range(2)),
            norm(),
            Linear(hidden_dim, action_dim),
        )

    def forward(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b chunk a"]:
        """Give actions from the tokens of their numbers, action by action."""
        return self.layers(tokens.unflatten(1, (-1, self.action_dim)).flatten(2))


class VAT(nn.Module):
    """A policy around a plain model: images of what a robot sees, to its next actions.

    The model is any of one sequence whose blocks keep every token, and the object passed in. Where it is
    frozen (`vit.requires_grad_(False)`), actions learn alone; otherwise it learns with them. What no action
    layer reads is not run, and is frozen: the blocks behind the last one read, the final norm, the head.

    Args:
        vit: the model that sees, with its weights.
        action_dim: numbers of an action.
        action_chunk: actions that are predicted at once.
        dim: width of an action token; that of the vision tokens unless told.
        heads: number of attention heads of the action layers.
        dim_head: width of a head.
        mlp_dim: width inside the action layers' feed-forward; 4 * `dim` unless told.
        vit_layer_indices: for each action layer, after how many of the model's blocks it reads: 0 reads what
            enters the first. None for a layer beside each block, which reads what enters that.
        num_views: views of the scene, each seen by the model alone.
        frames: times, from the first to the present one, each seen alone.
        num_tasks: number of tasks that the policy is told apart by number; None for a policy of one task.
        use_film: whether the task is told by FiLM in every layer; otherwise it is added to the action tokens.
        film_std: standard deviation that FiLM's last layers start with; the authors' code has 0.02.
        self_attn: whether action tokens attend to each other in every layer, which in the paper they do not.
        dropout: dropout after the linear layers of the action layers, in [0, 1).
        norm_eps: epsilon of the action layers' LayerNorms.

    Raises:
        ValueError: where the model is none of these, a layer is outside of it, or a number is not at least 1.
    """

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
        if not isinstance(vit, IsotropicModel) or type(vit.encoder) is not Encoder:
            raise ValueError(
                f"a VAT sees by a plain model whose blocks keep every token, got {type(vit).__name__}"
            )
        depth = len(vit.encoder.blocks)
        reads = tuple(range(depth) if vit_layer_indices is None else vit_layer_indices)
        if not reads or min(reads) < 0 or max(reads) > depth:
            raise ValueError(f"vit_layer_indices are 0 to {depth}, at least one; got {reads}")
        numbers = {"action_dim": action_dim, "action_chunk": action_chunk, "num_views": num_views}
        numbers |= {"frames": frames, "num_tasks": 1 if num_tasks is None else num_tasks}
        if min(numbers.values()) < 1:
            raise ValueError(f"numbers of actions, views, times and tasks are at least 1, got {numbers}")
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
        self.view_embed = _learned(num_views, 1, 1, vision_dim) if num_views > 1 else None
        self.frame_embed = _learned(frames, 1, vision_dim) if frames > 1 else None
        self.task_embed = None if num_tasks is None else nn.Embedding(num_tasks, dim)
        tells = num_tasks is not None and use_film
        self.use_film = use_film

        def block(layer: int) -> ActionBlock:
            norm = partial(nn.LayerNorm, dim, eps=norm_eps)
            sizes: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "dropout": dropout}
            narrow = FeedForward(dim, mlp_dim or 4 * dim, dropout=dropout)
            return ActionBlock(
                CrossAttention(dim, vision_dim, **sizes, attend=FusedAttention),
                Residual(narrow, norm()),
                norm=norm(),
                context_norm=nn.LayerNorm(vision_dim, eps=norm_eps),
                film=FiLM(dim, std=film_std) if tells else None,
                mix=Residual(Attention(dim, **sizes), norm()) if self_attn else None,
            )

        self.encoder = Encoder(block, depth=len(reads))
        self.head = ActionHead(dim, action_dim, hidden_dim=dim)
        _freeze_unread(vit, max(reads))

    def forward(
        self, images: Float[Tensor, "b ..."], tasks: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b chunk a"]:
        """Predict the next actions.

        Args:
            images: (b, views, c, times, height, width); without the axis of views, and that of times, where
                there is one.
            tasks: the number of each sample's task, where the policy knows several.

        Raises:
            ValueError: where the images are not what the model takes, or tasks miss or are too many.
        """
        seen = self.see(images)
        task = self._embed_tasks(tasks, len(images))
        tokens = self.action_tokens.expand(len(images), -1, -1)
        if task is not None and not self.use_film:
            tokens = tokens + task
        for block, layer in zip(self.encoder.blocks, self.reads, strict=True):
            tokens = self.encoder.run(block, tokens, seen[layer], task)
        return self.head(tokens)

    def see(self, images: Float[Tensor, "b ..."]) -> dict[int, Float[Tensor, "b n c"]]:
        """Give the vision tokens that action layers read, of all views and times, by the blocks behind them.

        Args:
            images: as `forward` takes them.
        """
        single = self._single_images(images)
        tokens = self.vit.embed(single)
        grid = self.vit.grid.fit(single.shape[2:])
        states = {0: self._place(tokens)} if 0 in self.reads else {}
        if max(self.reads) > 0:
            for layer, after in enumerate(self.vit.encoder.steps(tokens, *self.vit.context(grid)), 1):
                if layer in self.reads:
                    states[layer] = self._place(after)
                if layer == max(self.reads):
                    break
        return states

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.vit.set_grad_checkpointing(enable)
        self.encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        own = {"action_tokens", "view_embed", "frame_embed", "task_embed.weight"}
        names = {name for name, _ in self.named_parameters()}
        return (names & own) | {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy's weights, its model's among them, as safetensors with its configuration."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / WEIGHTS_NAME, {"format": "pt"})
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, vit: IsotropicModel) -> VAT:
        """Build a policy that `save_pretrained` wrote; in eval.

        Args:
            folder: where it was written.
            vit: a model of the same architecture; its weights are replaced by those written.

        Raises:
            FileNotFoundError: where a file is missing.
            ValueError: where a file is damaged, or the model is another.
        """
        weights, config = Path(folder) / WEIGHTS_NAME, Path(folder) / CONFIG_NAME
        policy = cls(vit, **json.loads(config.read_text()))
        load_weights(policy, read_safetensors(weights), source=str(weights))
        return policy.eval()

    def _single_images(self, images: Tensor) -> Tensor:
        """Put the images of all views and times one after the other in the batch."""
        views, frames = self.num_views, self.frames
        short = 4 + (views > 1) + (frames > 1)
        if images.ndim not in (short, 6):
            raise ValueError(
                f"expected images of rank {short} or 6 (batch, {views} views, channels, {frames} times, "
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

    def _place(self, tokens: Float[Tensor, "s n c"]) -> Float[Tensor, "b m c"]:
        """Put the tokens of all views and times of a sample side by side, and tell them apart."""
        tokens = tokens.unflatten(0, (-1, self.num_views, self.frames))
        if self.view_embed is not None:
            tokens = tokens + self.view_embed
        if self.frame_embed is not None:
            tokens = tokens + self.frame_embed
        return tokens.flatten(1, 3)

    def _embed_tasks(self, tasks: Tensor | None, samples: int) -> Float[Tensor, "b 1 d"] | None:
        if self.task_embed is None:
            if tasks is not None:
                raise ValueError(f"this policy has one task (num_tasks=None), got tasks {tuple(tasks.shape)}")
            return None
        known = self.task_embed.num_embeddings
        if tasks is None or tasks.shape != (samples,) or tasks.is_floating_point():
            got = None if tasks is None else f"{tasks.dtype} of shape {tuple(tasks.shape)}"
            raise ValueError(f"expected the task, 0 to {known - 1}, of each of {samples} samples, got {got}")
        return self.task_embed(tasks)[:, None]


def _learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def _freeze_unread(vit: IsotropicModel, last: int) -> None:
    """Freeze what stands behind a model's block of this number, which nothing reads."""
    behind: list[nn.Module] = [part for name, part in vit.named_children() if name not in FRONT]
    behind += list(vit.encoder.blocks)[last:]
    if not vit.num_encoder_prefix_tokens:
        behind.append(vit.prefix)
    for part in behind:
        part.requires_grad_(False)
