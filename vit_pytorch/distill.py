"""Training data-efficient image transformers & distillation through attention.

H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jégou 2020, arXiv:2012.12877.

A token beside the class token learns what a teacher says of the image, as the class token learns the label;
at inference the mean of both classifiers' logits decides.

Family: distillation
Differs from the paper: nothing. The soft loss is equation 2, a mean over images; the authors' program
divides it by the number of classes once more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.efficient import ViT as EfficientViT
from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import DistilledHead, PrefixTokens, TwoHeads, make_distilled_classifier
from vit_pytorch.t2t import T2TViT
from vit_pytorch.vit_v01 import ViT


class Distillable(IsotropicModel):
    """A plain model with a distillation token behind the class token, and a classifier for each.

    The token has a position of its own where positions are learned. The pooled embedding is what the model
    pools without the token, as a rule the class token, and the distillation token, one after the other.
    """

    def add_distillation_token(self) -> None:
        """Give the model the token and its position.

        Raises:
            ValueError: where layers stand between pooling and classifier, which act on one vector.
        """
        between = {"fc_norm": self.fc_norm, "representation_size": self.pre_logits}
        given = [name for name, module in between.items() if not isinstance(module, nn.Identity)]
        given += ["pool='cls+mean'"] if self.pool == "cls+mean" else []
        if given:
            raise ValueError(f"a distilled model classifies its tokens as they are; got {', '.join(given)}")
        registers = 0 if self.prefix.registers is None else self.prefix.registers.shape[1]
        class_token = self.prefix.class_token is not None
        self.prefix = PrefixTokens(
            self.num_features, class_token=class_token, distillation_token=True, registers=registers
        )
        if isinstance(self.positions, LearnedPositions) and self.positions.prefix == int(class_token):
            grid = self.positions.grid
            self.positions = LearnedPositions(grid, self.num_features, prefix=1 + int(class_token))
        self.head_width = 2 * self.num_features

    @property
    def distillation_place(self) -> int:
        """Place of the distillation token in the sequence."""
        return int(self.prefix.class_token is not None)

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Give what is pooled and the distillation token, one after the other."""
        return torch.cat([super().pool_tokens(features), features[:, self.distillation_place]], dim=-1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both classifiers by new ones; the first call, a constructor's last act, adds the token.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "cls" (timm's "token") or "mean" (timm's "avg").
        """
        if self.prefix.distillation_token is None:
            self.add_distillation_token()
        super().reset_classifier(0, global_pool)
        self.head = make_distilled_classifier(self.num_features, num_classes, like=next(self.parameters()))
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def to_vit(self) -> IsotropicModel:
        """Give the plain model that computes the class token's logits.

        The distillation token takes part in attention, so it stays, as a register that nothing classifies;
        its position is added to it. The weights are copies.
        """
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        token = state.pop("prefix.distillation_token")
        place, table = self.distillation_place, state.get("positions.table")
        if table is not None and self.positions is not None and self.positions.prefix > place:
            token = token + table[:, place : place + 1]
            state["positions.table"] = torch.cat([table[:, :place], table[:, place + 1 :]], dim=1)
        registers = [token, *([state["prefix.registers"]] if "prefix.registers" in state else [])]
        state["prefix.registers"] = torch.cat(registers, dim=1)
        if isinstance(self.head, DistilledHead):
            del state["head.distilled.weight"], state["head.distilled.bias"]
        plain = self._plain().to(token)
        plain.load_state_dict(state)
        plain.default_cfg.update({**self.default_cfg, "architecture": type(plain).__name__})
        return plain.train(self.training)

    @staticmethod
    def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Give the arguments of the plain model that `to_vit` makes, whose token has become a register."""
        return {**config, "num_registers": config.get("num_registers", 0) + 1}

    def _plain(self) -> IsotropicModel:
        """Build the model without the token."""
        plain = next(base for base in type(self).__bases__ if base is not Distillable)
        return plain(**self.plain_config(self.config))


class DistillableViT(Distillable, ViT):
    """The ViT with a distillation token; takes the arguments of `ViT`.

    Raises:
        ValueError: as `ViT` does, and for `fc_norm` and `representation_size`.
    """


class DistillableT2TViT(Distillable, T2TViT):
    """The T2T-ViT with a distillation token; takes the arguments of `T2TViT`."""


class DistillableEfficientViT(Distillable, EfficientViT):
    """A ViT around any encoder, with a distillation token; takes the arguments of `efficient.ViT`."""

    def _plain(self) -> IsotropicModel:
        """Build the model without the token, around a copy of the encoder."""
        return EfficientViT(**self.plain_config(self.config), transformer=copy.deepcopy(self.encoder))


# a plain model that has only a name, and the student to build in its place
DISTILLABLE: dict[type[VisionModel], type[Distillable]] = {ViT: DistillableViT, T2TViT: DistillableT2TViT}


class DistillWrapper(nn.Module):
    """The loss of a student that learns from labels and from a teacher (section 4).

    The teacher stays in eval, is given no gradients, and follows the wrapper from device to device.

    Args:
        student: a model with two classifiers (`TwoHeads`): one of this module, or PiT or LeViT with
            `distilled=True`.
        teacher: gives logits (b, k) from the student's images; any module. Of an output with an attribute
            `logits`, as models of transformers give it, that is taken.
        temperature: softens both distributions of the soft loss; positive.
        alpha: weight of the teacher's part, in [0, 1]; the label's part has 1 - `alpha`.
        hard: whether the teacher's decision is learned like a label (equation 3), rather than its
            distribution (equation 2).

    Raises:
        ValueError: where a number is out of range, or the student has no classifier for the teacher.
    """

    def __init__(
        self,
        *,
        student: VisionModel,
        teacher: nn.Module,
        temperature: float = 1.0,
        alpha: float = 0.5,
        hard: bool = False,
    ) -> None:
        super().__init__()
        check_weights(temperature, alpha)
        if not isinstance(student.get_classifier(), TwoHeads):
            raise ValueError(
                "the student needs a classifier for its distillation token, such as DistillableViT has; "
                f"got {type(student).__name__} with {type(student.get_classifier()).__name__}"
            )
        self.student = student
        self.teacher = teacher.eval()
        self.temperature = temperature
        self.alpha = alpha
        self.hard = hard

    def train(self, mode: bool = True) -> DistillWrapper:
        """Set the student to training or to eval; the teacher stays in eval."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | Float[Tensor, "b k"],
        temperature: float | None = None,
        alpha: float | None = None,
        **options: Any,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            images: input of both models.
            labels: classes, or a distribution over them for each image.
            temperature: another temperature for this batch.
            alpha: another weight for this batch.
            options: handed to the cross entropy with the labels, such as `label_smoothing`.

        Raises:
            ValueError: where a number is out of range, or the teacher has other classes.
        """
        temperature = self.temperature if temperature is None else temperature
        alpha = self.alpha if alpha is None else alpha
        check_weights(temperature, alpha)
        head = self.student.get_classifier()
        assert isinstance(head, TwoHeads)
        features = self.student.forward_features(images)
        logits, distilled = head.separate(self.student.forward_head(features, pre_logits=True))
        taught = self.ask_teacher(images)
        if taught.shape != distilled.shape:
            raise ValueError(
                f"expected logits of shape {tuple(distilled.shape)} from the teacher, "
                f"got {tuple(taught.shape)}"
            )
        loss = F.cross_entropy(logits, labels, **options)
        return (1 - alpha) * loss + alpha * self.teach(distilled, taught, temperature)

    @torch.no_grad()
    def ask_teacher(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Compute the teacher's logits.

        Raises:
            ValueError: where its output holds no logits.
        """
        output = self.teacher(images)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise ValueError(f"expected logits from the teacher, got {type(output).__name__}")
        return logits

    def teach(
        self, distilled: Float[Tensor, "b k"], taught: Float[Tensor, "b k"], temperature: float
    ) -> Float[Tensor, ""]:
        """Compute the teacher's part of the loss, the mean over images (equations 2 and 3)."""
        if self.hard:
            return F.cross_entropy(distilled, taught.argmax(dim=-1))
        student, teacher = (F.log_softmax(x / temperature, dim=-1) for x in (distilled, taught))
        return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def check_weights(temperature: float, alpha: float) -> None:
    """Hold the numbers of a distillation loss against their ranges.

    Raises:
        ValueError: where one is outside.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
