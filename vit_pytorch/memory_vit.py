"""Fine-tuning Image Transformers using Learnable Memory.

M. Sandler, A. Zhmoginov, M. Vladymyrov, A. Jackson 2022, arXiv:2203.15243.

The adapter of `learnable_memory_vit` and its frozen ViT as one model, with the interface of all models: this
is what `vit finetune --method memory` trains, and what its folder holds.

Family: plain
Differs from the paper: as `learnable_memory_vit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import check_arguments
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.tokens import make_classifier
from vit_pytorch.learnable_memory_vit import Adapter, Mode
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.vit import ViT

BASES: dict[str, type[IsotropicModel]] = {base.__name__: base for base in (ViT, SimpleViT)}


class MemoryViT(VisionModel):
    """A frozen ViT and an adapter as one model, which is saved and loaded like any other.

    Its tokens are the task's class token, which is classified, and after it those of the base; in mode
    "finetune" without the base's own class token.

    Args:
        base: arguments of the base, and under "architecture" its class if that is not `ViT`.
        num_classes: number of logits of the task; 0 for the class token.
        num_memories_per_layer: memory tokens of a layer.
        memory_std: standard deviation of the initial memories.

    Raises:
        ValueError: if the base is not a plain ViT, or arguments are out of range.
    """

    pool = "cls"

    def __init__(
        self,
        *,
        base: Mapping[str, Any],
        num_classes: int,
        num_memories_per_layer: int = 10,
        mode: Mode = "extend",
        memory_std: float = 0.02,
    ) -> None:
        arguments = dict(base)
        architecture = arguments.pop("architecture", ViT.__name__)
        check_choice("architecture", architecture, BASES)
        vit = BASES[architecture](**arguments)
        super().__init__(
            num_classes=num_classes,
            num_features=vit.num_features,
            channels=vit.channels,
            image_size=vit.image_size,
        )
        self.adapter = Adapter(
            vit=vit,
            num_classes=max(num_classes, 1),
            num_memories_per_layer=num_memories_per_layer,
            mode=mode,
            memory_std=memory_std,
        )
        if not num_classes:
            self.reset_classifier(0)

    @classmethod
    def around(cls, vit: IsotropicModel, **options: Any) -> MemoryViT:
        """Build the model around an existing base, which becomes part of it and is not copied.

        Raises:
            ValueError: if the base is neither a `ViT` nor a `SimpleViT`, or as the class does.
        """
        if type(vit) not in BASES.values():
            names = " or a ".join(BASES)
            raise ValueError(f"the base of a MemoryViT must be a {names}, got {type(vit).__name__}")
        with torch.device("meta"):
            model = cls(base={"architecture": type(vit).__name__, **vit.config}, **options)
        model.adapter = Adapter(vit=vit, **{**model.adapter.config, "num_classes": max(model.num_classes, 1)})
        if not model.num_classes:
            model.reset_classifier(0)
        model.default_cfg = {**vit.default_cfg, "num_classes": model.num_classes}
        return model

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        """Number of tokens before the patches; the task's class token is the first."""
        return self.adapter.vit.num_prefix_tokens + int(self.adapter.mode == "extend")

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels)."""
        return [
            {**info, "module": f"adapter.layers.{index}"}
            for index, info in enumerate(self.adapter.vit.feature_info)
        ]

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the task's class token first."""
        return self.adapter.vit.norm(torch.cat(self.adapter.forward_features(images), dim=1))

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Classify the task's class token."""
        x = self.adapter.vit.fc_norm(self.pool_features(features))
        return x if pre_logits else self.adapter.task.head(x)

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the patches and the prefix tokens in the output of a layer, and the patches' grid."""
        vit, count = self.adapter.vit, self.num_prefix_tokens
        x = torch.cat(output, dim=1)
        x = vit.norm(x) if norm else x
        return x[:, count:], x[:, :count], vit.grid.fit(size)

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the task's logits; the identity if there is none."""
        return self.adapter.task.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the task's classifier by a new one; the only pooling is "cls" (timm's "token")."""
        check_arguments(VisionModel.reset_classifier, num_classes=num_classes, global_pool=global_pool)
        if global_pool not in (None, "cls", "token"):
            self.change_pool(global_pool)
        task = self.adapter.task
        task.head = make_classifier(self.num_features, num_classes, like=task.memories)
        self.adapter.config["num_classes"] = num_classes
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.adapter.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of more than one axis without weight decay: tokens and positions."""
        base = {f"adapter.vit.{name}" for name in self.adapter.vit.no_weight_decay()}
        return base | {"adapter.task.class_token", "adapter.task.memories"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the task's are the last."""
        return {
            "stem": r"^adapter\.vit\.(?:prefix|positions|patch_embed|pre_norm)\.",
            "blocks": [(r"^adapter\.vit\.blocks\.(\d+)", None), (r"^adapter\.vit\.norm\.", (99999,))],
        }
