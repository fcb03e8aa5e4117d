"""Fine-tuning Image Transformers using Learnable Memory.

M. Sandler, A. Zhmoginov, M. Vladymyrov, A. Jackson 2022, arXiv:2203.15243.

Gives a trained, frozen ViT new tasks: each layer gets a few learned memory tokens that others attend to and
that attend to nothing, and each task its class token and head. Where the old tokens cannot see the new
ones, the old logits stay as they are and one pass serves the old task and all new ones.

Family: plain
Differs from the paper: the old tokens are computed by themselves instead of under an attention mask, which is
the same function, to the last bit for the old task, and costs neither a mask nor a backward pass over them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_pytorch.layers_v01.attention import Attention
from vit_pytorch.layers_v01.blocks import Block, Residual
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.vit_v01 import ViT as ViT
from vit_pytorch.weights import load_weights, read_safetensors

WEIGHTS_NAME = "adapter.safetensors"
CONFIG_NAME = "adapter_config.json"
Mode = Literal["extend", "finetune"]


class Task(nn.Module):
    """What is learned for one task: a class token, memories for every layer, and a head.

    Args:
        vit: the base; the class token starts as its own, with its position, where it has one.
        num_classes: number of logits.
        memories: memory tokens of a layer.
        std: standard deviation that memories start with.
    """

    def __init__(self, vit: ViT, *, num_classes: int, memories: int, std: float) -> None:
        super().__init__()
        dim = vit.num_features
        like = next(vit.parameters())
        self.class_token = nn.Parameter(like.new_empty(1, 1, dim))
        self.memories = nn.Parameter(like.new_empty(len(vit.encoder.blocks), memories, dim))
        head = nn.Linear(dim, num_classes, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.memories, std=std)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.head: nn.Module = head
        with torch.no_grad():
            if vit.prefix.class_token is None:
                nn.init.trunc_normal_(self.class_token, std=0.02)
            else:
                self.class_token.copy_(vit.prefix.class_token)
                if isinstance(vit.positions, LearnedPositions) and vit.positions.prefix:
                    self.class_token.add_(vit.positions.table[:, :1])


class Adapter(nn.Module):
    """A frozen ViT with memories, a class token and a head of its own for one task.

    The base is not copied: it is frozen and put in eval where it is, and stays so whatever `train` is told,
    so that its dropout is off. Several adapters may share one base and train apart. What an adapter learns
    is `adapter.task`, and that alone is saved.

    Args:
        vit: the base, with plain blocks of attention and feed-forward.
        num_classes: number of logits of the task.
        num_memories_per_layer: memory tokens of a layer; with 0, class token and head are all that learns.
        mode: "extend" leaves the base's tokens unaware of the task (section 2.2); "finetune" lets all tokens
            see the memories and puts the task's class token in the place of the base's (section 2.1), which
            serves the new task alone.
        memory_std: standard deviation that memories start with.

    Raises:
        ValueError: where the base is not a plain ViT, or arguments are out of range.
    """

    def __init__(
        self,
        *,
        vit: ViT,
        num_classes: int,
        num_memories_per_layer: int = 10,
        mode: Mode = "extend",
        memory_std: float = 0.02,
    ) -> None:
        super().__init__()
        if not isinstance(vit, ViT):
            raise ValueError(f"the base of an adapter is a ViT, got {type(vit).__name__}")
        if num_classes < 1 or num_memories_per_layer < 0:
            raise ValueError(
                "num_classes is at least 1 and num_memories_per_layer 0; "
                f"got {num_classes} and {num_memories_per_layer}"
            )
        check_choice("mode", mode, ("extend", "finetune"))
        if mode == "finetune" and vit.prefix.class_token is None:
            raise ValueError("mode='finetune' takes the place of the base's class token; the base has none")
        self.config: dict[str, Any] = {
            "num_classes": num_classes,
            "num_memories_per_layer": num_memories_per_layer,
            "mode": mode,
            "memory_std": memory_std,
        }
        self.mode = mode
        list(_layers(vit))
        self.vit = vit.requires_grad_(False).eval()
        self.task = Task(vit, num_classes=num_classes, memories=num_memories_per_layer, std=memory_std)

    def train(self, mode: bool = True) -> Adapter:
        """Switch the task between training and eval; the base stays in eval."""
        super().train(mode)
        self.vit.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Compute the logits of the task.

        Raises:
            ValueError: where rank, channels, size or dtype of the images are not what the base takes.
        """
        *_, (_, new) = self.steps(images)
        return self.classify(new[:, 0])

    def steps(
        self, images: Float[Tensor, "b c h w"]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], Float[Tensor, "b 1 d"]]]:
        """Give what enters the first block and what each block gives: the other tokens, the class token."""
        tokens = self.vit.embed(images)
        if self.mode == "finetune":
            return _finetune(self.vit, tokens, self.task)
        return _extend(self.vit, tokens, [self.task])

    def classify(self, token: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Compute logits from the task's class token behind the last block."""
        return self.task.head(self.vit.fc_norm(self.vit.norm(token)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what the adapter learned, without the base, as safetensors with its configuration."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.task.state_dict(), folder / WEIGHTS_NAME, {"format": "pt"})
        (folder / CONFIG_NAME).write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, vit: ViT) -> Adapter:
        """Build an adapter that `save_pretrained` wrote; in eval.

        Args:
            folder: where it was written.
            vit: the base that it was trained on.

        Raises:
            FileNotFoundError: where a file is missing.
            ValueError: where a file is damaged, or the base has another depth or width.
        """
        weights, config = Path(folder) / WEIGHTS_NAME, Path(folder) / CONFIG_NAME
        adapter = cls(vit=vit, **json.loads(config.read_text()))
        load_weights(adapter.task, read_safetensors(weights), source=str(weights))
        return adapter.eval()


class Adapters(nn.Module):
    """Several adapters beside their base, in one pass (section 2.2, table 1).

    Args:
        adapters: adapters of one base, in mode "extend".
        extension: False concatenates adapters that trained apart: none sees another. True lets each
            task see those before it ("model extension"), for tasks trained one after the other.

    Raises:
        ValueError: where there is none, or they differ in their base, or one is of another mode.
    """

    mask: Tensor

    def __init__(self, adapters: Sequence[Adapter], *, extension: bool = False) -> None:
        super().__init__()
        bases = len({id(adapter.vit) for adapter in adapters})
        if bases != 1:
            raise ValueError(f"adapters share one base, got {len(adapters)} adapters of {bases} bases")
        if any(adapter.mode != "extend" for adapter in adapters):
            raise ValueError(f"mode is 'extend' side by side, got {[adapter.mode for adapter in adapters]}")
        self.adapters = nn.ModuleList(adapters)
        vit = adapters[0].vit
        memories = [adapter.task.memories.shape[1] for adapter in adapters]
        tokens = vit.num_prefix_tokens + vit.grid.num_patches
        mask = visibility(memories, tokens, extension=extension).to(adapters[0].task.memories.device)
        self.register_buffer("mask", mask, persistent=False)

    def forward(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b k"], list[Float[Tensor, "b _"]]]:
        """Compute the base's logits, to the bit those it computes alone, and those of each task."""
        adapters = list(cast("Iterable[Adapter]", self.adapters))
        vit = adapters[0].vit
        tasks = [adapter.task for adapter in adapters]
        *_, (tokens, new) = _extend(vit, vit.embed(images), tasks, mask=self.mask)
        logits = [adapter.classify(new[:, i]) for i, adapter in enumerate(adapters)]
        return vit.forward_head(vit.norm(tokens)), logits


def visibility(memories: Sequence[int], tokens: int, *, extension: bool = False) -> Bool[Tensor, "k keys"]:
    """Say which key each task's class token sees (table 1).

    Args:
        memories: number of memories of each task.
        tokens: number of the base's tokens.
        extension: whether a task sees the tasks before it.

    Returns:
        A row a task; columns are the tasks' class tokens, the memories task by task, the base's tokens.
    """
    count = len(memories)
    own = torch.eye(count, dtype=torch.bool)
    own = torch.ones_like(own).tril() if extension else own
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor(memories))
    return torch.cat([own, own[:, owner], own.new_ones(count, tokens)], dim=1)


def _extend(
    vit: ViT, tokens: Float[Tensor, "b n d"], tasks: Sequence[Task], mask: Tensor | None = None
) -> Iterator[tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"]]]:
    """Run the base's tokens as the base does, and the tasks' class tokens beside them."""
    new = vit.pre_norm(torch.cat([task.class_token for task in tasks], dim=1)).expand(len(tokens), -1, -1)
    memories = torch.cat([task.memories for task in tasks], dim=1)
    if mask is not None:
        mask = mask[:, : new.shape[1] + memories.shape[1] + tokens.shape[1]]

    def layer(
        tokens: Tensor, new: Tensor, memory: Tensor, parts: tuple[Residual, Attention, Residual]
    ) -> tuple[Tensor, Tensor]:
        residual, attention, feedforward = parts
        q, k, v = attention.project(residual.norm(tokens))
        new = feedforward(_attend(residual, attention, new, memory, [(k, v)], mask))
        return feedforward(tokens + residual.tail(attention.merge(attention.attend(q, k, v)))), new

    yield tokens, new
    for parts, memory in zip(_layers(vit), memories, strict=True):
        tokens, new = vit.encoder.run(layer, tokens, new, memory, parts)
        yield tokens, new


def _finetune(
    vit: ViT, tokens: Float[Tensor, "b n d"], task: Task
) -> Iterator[tuple[Float[Tensor, "b n d"], Float[Tensor, "b 1 d"]]]:
    """Run all tokens with the task's class token in the place of the base's, each layer with its memories."""
    token = vit.pre_norm(task.class_token).expand(len(tokens), -1, -1)
    x = torch.cat([token, tokens[:, 1:]], dim=1)

    def layer(x: Tensor, memory: Tensor, parts: tuple[Residual, Attention, Residual]) -> Tensor:
        residual, attention, feedforward = parts
        return feedforward(_attend(residual, attention, x, memory))

    yield x[:, 1:], x[:, :1]
    for parts, memory in zip(_layers(vit), task.memories, strict=True):
        x = vit.encoder.run(layer, x, memory, parts)
        yield x[:, 1:], x[:, :1]


def _attend(
    residual: Residual,
    attention: Attention,
    x: Float[Tensor, "b n d"],
    memory: Float[Tensor, "m d"],
    seen: Sequence[tuple[Tensor, Tensor]] = (),
    mask: Tensor | None = None,
) -> Float[Tensor, "b n d"]:
    """Let tokens attend to themselves, to memories, and to keys and values that are there already.

    Memories go through the norm as tokens do, once for the whole batch (equation 3).
    """
    q, k, v = attention.project(residual.norm(x))
    _, *kept = attention.project(residual.norm(memory[None]))
    memory_k, memory_v = (part.expand(len(x), -1, -1, -1) for part in kept)
    k = torch.cat([k, memory_k, *(key for key, _ in seen)], dim=2)
    v = torch.cat([v, memory_v, *(value for _, value in seen)], dim=2)
    return x + residual.tail(attention.merge(attention.attend(q, k, v, mask)))


def _layers(vit: ViT) -> Iterator[tuple[Residual, Attention, Residual]]:
    """Give each block's attention residual, its attention, and its feed-forward residual.

    Raises:
        ValueError: where a block is not the plain one, whose steps would not be these.
    """
    for block in vit.encoder.blocks:
        if type(block) is Block:
            residual, feedforward = block.attention, block.feedforward
            if isinstance(feedforward, Residual) and type(residual) is Residual:
                attention = residual.branch
                if type(attention) is Attention:
                    yield residual, attention, feedforward
                    continue
        raise ValueError(f"memories need blocks of plain attention and feed-forward, got {block}")
