"""Fine-tuning Image Transformers using Learnable Memory.

M. Sandler, A. Zhmoginov, M. Vladymyrov, A. Jackson 2022, arXiv:2203.15243.

Gives a trained, frozen ViT new tasks: each layer gets a few learned memory tokens that others attend to and
that attend to nothing, and each task its class token and head. Where the old tokens cannot see the new
ones, the old logits do not change, and one pass serves the old task and all new ones.

Family: plain
Differs from the paper: the old tokens are computed separately instead of under an attention mask, which is
the same function, to the last bit for the old task, and costs neither a mask nor a backward pass over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import Attention
from vit_pytorch.layers.blocks import Block, layer, set_grad_checkpointing
from vit_pytorch.layers.init import init_embeddings
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.vit import ViT as ViT
from vit_pytorch.weights import (
    CHECKSUMS,
    load_weights,
    read_safetensors,
    read_settings,
    verify_checksum,
    write_bundle,
)

WEIGHTS_NAME = "adapter.safetensors"
CONFIG_NAME = "adapter_config.json"
Mode = Literal["extend", "finetune"]


class Task(nn.Module):
    """What is learned for one task: a class token, memories for every layer, and a head.

    Args:
        vit: the base; the class token starts as a copy of its own, with its position, if it has one.
        memories: number of memory tokens of a layer.
        std: standard deviation of the initial memories.
    """

    def __init__(self, vit: IsotropicModel, *, num_classes: int, memories: int, std: float) -> None:
        super().__init__()
        dim = vit.num_features
        like = next(vit.parameters())
        self.class_token = nn.Parameter(like.new_empty(1, 1, dim))
        self.memories = nn.Parameter(like.new_empty(len(vit.blocks), memories, dim))
        head = nn.Linear(dim, num_classes, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.memories, std=std)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.head: nn.Module = head
        with torch.no_grad():
            if vit.prefix.class_token is None:
                init_embeddings(self.class_token)
            else:
                self.class_token.copy_(vit.prefix.class_token)
                if isinstance(vit.positions, LearnedPositions) and vit.positions.prefix:
                    self.class_token.add_(vit.positions.table[:, :1])


class MemoryLayer(nn.Module):
    """A block of the base with memories; it has no weights of its own."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode = mode

    @layer
    def forward(
        self,
        new: Float[Tensor, "b k d"],
        tokens: Float[Tensor, "b n d"],
        memories: Float[Tensor, "m d"],
        block: Block,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b n d"]]:
        """Return the tasks' class tokens and the other tokens.

        Args:
            new: class tokens of the tasks.
            tokens: the other tokens.
            memories: memories of all tasks for this layer.
            block: the base's block.
            mask: what each class token sees of class tokens, memories and tokens; default everything.
        """
        if self.mode == "finetune":
            x = attend_to_memories(block, torch.cat([new, tokens], dim=1), memories)
            return x[:, :1], x[:, 1:]
        attention = plain_attention(block)
        q, k, v = attention.project(block.norm1(tokens))
        new = attend_to_memories(block, new, memories, (k, v), mask)
        tokens = tokens + block.scale1(attention.merge(attention.kernel(q, k, v)))
        return new, tokens + block.scale2(block.feedforward(block.norm2(tokens)))


class Adapter(nn.Module):
    """A frozen ViT with memories, a class token and a head of its own for one task.

    The base is not copied: it is frozen and stays in eval mode whatever `train` is called with, so that its
    dropout is off. Several adapters may share one base and be trained separately. What an adapter learns is
    `adapter.task`, and only that is saved.

    Args:
        vit: the base, a ViT or a SimpleViT with plain blocks of attention and feed-forward.
        num_memories_per_layer: memory tokens of a layer; with 0, only class token and head are learned.
        mode: "extend" keeps the base's tokens unaware of the task (section 2.2); "finetune" lets all tokens
            see the memories and replaces the base's class token by the task's (section 2.1), which serves
            only the new task.
        memory_std: standard deviation of the initial memories.

    Raises:
        ValueError: if the base is not a plain ViT, or arguments are out of range.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        vit: IsotropicModel,
        num_classes: int,
        num_memories_per_layer: int = 10,
        mode: Mode = "extend",
        memory_std: float = 0.02,
    ) -> None:
        super().__init__()
        if not isinstance(vit, ViT | SimpleViT):
            raise ValueError(f"the base of an adapter must be a ViT or a SimpleViT, got {type(vit).__name__}")
        if num_classes < 1 or num_memories_per_layer < 0:
            raise ValueError(
                "num_classes must be at least 1 and num_memories_per_layer 0, "
                f"got {num_classes} and {num_memories_per_layer}"
            )
        check_choice("mode", mode, ("extend", "finetune"))
        if mode == "finetune" and vit.prefix.class_token is None:
            raise ValueError("mode='finetune' replaces the base's class token; the base has none")
        if getattr(vit, "relative", None) is not None or getattr(vit, "rotary", None) is not None:
            raise ValueError("memories have no position: the base must not use any inside attention")
        self.config: dict[str, Any] = {
            "num_classes": num_classes,
            "num_memories_per_layer": num_memories_per_layer,
            "mode": mode,
            "memory_std": memory_std,
        }
        self.mode = mode
        for block in vit.blocks:
            plain_attention(block)
        self.vit = vit.requires_grad_(False).eval()
        self.layers = nn.ModuleList(MemoryLayer(mode) for _ in vit.blocks)
        self.task = Task(vit, num_classes=num_classes, memories=num_memories_per_layer, std=memory_std)

    def train(self, mode: bool = True) -> Adapter:
        """Set the task to training or eval mode; the base stays in eval mode."""
        super().train(mode)
        self.vit.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Compute the logits of the task.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the base takes.
        """
        new, _ = self.forward_features(images)
        return self.classify(new[:, 0])

    def forward_features(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b 1 d"], Float[Tensor, "b n d"]]:
        """Return the task's class token and the other tokens after the last block, before the final norm."""
        new, tokens = embed(self.vit, images, [self.task])
        if self.mode == "finetune":
            tokens = tokens[:, 1:]
        for index, (memory_layer, block) in enumerate(zip(self.layers, self.vit.blocks, strict=True)):
            new, tokens = memory_layer(new, tokens, self.task.memories[index], block)
        return new, tokens

    def classify(self, token: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Compute logits from the task's class token after the last block."""
        return self.task.head(self.vit.fc_norm(self.vit.norm(token)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        set_grad_checkpointing(self.layers, enable)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what the adapter learned, without the base, as safetensors with its configuration."""
        folder = Path(folder)
        save = partial(save_file, self.task.state_dict(), metadata={"format": "pt"})
        write_bundle(folder / WEIGHTS_NAME, folder / CONFIG_NAME, self.config, save)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, vit: IsotropicModel) -> Adapter:
        """Load an adapter that `save_pretrained` wrote, in eval mode.

        Args:
            vit: the base that it was trained on.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is damaged, or the base has another depth or dimension.
        """
        weights, config = Path(folder) / WEIGHTS_NAME, Path(folder) / CONFIG_NAME
        settings = read_settings(config)
        verify_checksum(weights, settings)
        adapter = cls(vit=vit, **{name: value for name, value in settings.items() if name not in CHECKSUMS})
        load_weights(adapter.task, read_safetensors(weights), source=str(weights))
        return adapter.eval()


class Adapters(nn.Module):
    """Several adapters and their base in one pass (section 2.2, table 1).

    Args:
        adapters: adapters of one base, in mode "extend".
        extension: False concatenates adapters that were trained separately: none sees another. True lets each
            task see those before it ("model extension"), for tasks trained one after the other.

    Raises:
        ValueError: if there is none, they differ in their base, or one is of another mode.
    """

    mask: Tensor

    def __init__(self, adapters: Sequence[Adapter], *, extension: bool = False) -> None:
        super().__init__()
        bases = len({id(adapter.vit) for adapter in adapters})
        if bases != 1:
            raise ValueError(f"adapters must share one base, got {len(adapters)} adapters of {bases} bases")
        if any(adapter.mode != "extend" for adapter in adapters):
            raise ValueError(
                f"adapters must have mode='extend', got {[adapter.mode for adapter in adapters]}"
            )
        self.adapters = nn.ModuleList(adapters)
        vit = adapters[0].vit
        memories = [adapter.task.memories.shape[1] for adapter in adapters]
        tokens = vit.num_prefix_tokens + vit.grid.num_patches
        mask = visibility(memories, tokens, extension=extension).to(adapters[0].task.memories.device)
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b k"], list[Float[Tensor, "b _"]]]:
        """Compute the base's logits, equal to the bit to those it computes alone, and those of each task."""
        adapters = list(cast("Iterable[Adapter]", self.adapters))
        vit = adapters[0].vit
        tasks = [adapter.task for adapter in adapters]
        memories = torch.cat([task.memories for task in tasks], dim=1)
        new, tokens = embed(vit, images, tasks)
        # Smaller images have fewer tokens, which are the last columns.
        mask = self.mask[:, : new.shape[1] + memories.shape[1] + tokens.shape[1]]
        for index, (memory_layer, block) in enumerate(zip(adapters[0].layers, vit.blocks, strict=True)):
            new, tokens = memory_layer(new, tokens, memories[index], block, mask)
        logits = [adapter.classify(new[:, i]) for i, adapter in enumerate(adapters)]
        return vit.forward_head(vit.norm(tokens)), logits


def visibility(memories: Sequence[int], tokens: int, *, extension: bool = False) -> Bool[Tensor, "k keys"]:
    """Return which key each task's class token sees (table 1).

    Args:
        memories: number of memories of each task.
        tokens: number of the base's tokens.
        extension: a task sees the tasks before it.

    Returns:
        A row per task; columns are the tasks' class tokens, the memories task by task, the base's tokens.
    """
    count = len(memories)
    own = torch.eye(count, dtype=torch.bool)
    own = torch.ones_like(own).tril() if extension else own
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor(memories))
    return torch.cat([own, own[:, owner], own.new_ones(count, tokens)], dim=1)


def embed(
    vit: IsotropicModel, images: Float[Tensor, "b c h w"], tasks: Sequence[Task]
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b n d"]]:
    """Return the class tokens of the tasks and the tokens of the base that enter the blocks."""
    tokens = vit.embed(images)
    new = vit.pre_norm(torch.cat([task.class_token for task in tasks], dim=1))
    return new.expand(tokens.shape[0], -1, -1), tokens


def attend_to_memories(
    block: Block,
    x: Float[Tensor, "b n d"],
    memories: Float[Tensor, "m d"],
    others: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b n d"]:
    """Apply a block to tokens that attend to themselves, to memories, and to other keys and values.

    Memories pass through the norm as tokens do, once for the whole batch (equation 3).
    """
    attention = plain_attention(block)
    q, k, v = attention.project(block.norm1(x))
    _, memory_k, memory_v = attention.project(block.norm1(memories[None]))
    keys = [k, memory_k.expand(x.shape[0], -1, -1, -1)]
    values = [v, memory_v.expand(x.shape[0], -1, -1, -1)]
    if others is not None:
        keys.append(others[0])
        values.append(others[1])
    mixed = attention.kernel(q, torch.cat(keys, dim=2), torch.cat(values, dim=2), mask)
    x = x + block.scale1(attention.merge(mixed))
    return x + block.scale2(block.feedforward(block.norm2(x)))


def plain_attention(block: nn.Module) -> Attention:
    """Return the attention of a plain block.

    Raises:
        ValueError: if the block is not the plain one, whose steps would not be those of `MemoryLayer`.
    """
    if type(block) is Block:
        attention = block.attention
        if type(attention) is Attention and attention.position is None and attention.value_mix is None:
            return attention
    raise ValueError(f"memories need blocks of plain attention and feed-forward, got {block}")
