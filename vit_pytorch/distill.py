"""Training data-efficient image transformers & distillation through attention.

H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jégou 2020, arXiv:2012.12877.

A distillation token learns the teacher's output for the image, as the class token learns the label; at
inference the logits are the mean of both classifiers'.

Family: distillation
Differs from the paper: nothing. The soft loss is equation 2, a mean over images; the authors' program
divides it by the number of classes once more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.efficient import ViT as EfficientViT
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.patches import PrefixTokens
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.tokens import DistilledHead, TwoHeads, classify_pair, make_classifier
from vit_pytorch.t2t import T2TViT
from vit_pytorch.vit import ViT


class Distillable(IsotropicModel):
    """A plain model with a distillation token after the class token, and a classifier for each.

    The token has a position of its own where positions are learned. One classifier gets the pooled tokens, as
    a rule the class token, the other one the distillation token; the embedding is the mean of the two, as in
    timm.
    """

    # The model without the distillation token.
    plain: ClassVar[type[IsotropicModel]]

    def add_distillation_token(self) -> None:
        """Add the token and its position.

        Raises:
            ValueError: if layers between pooling and classifier act on one vector.
        """
        between = {"head.norm": self.fc_norm, "head.hidden_dim": self.pre_logits}
        given = [name for name, module in between.items() if not isinstance(module, nn.Identity)]
        given += ["pool='cls+mean'"] if self.pool == "cls+mean" else []
        if given:
            raise ValueError(f"a distilled model classifies its tokens as they are, got {', '.join(given)}")
        registers = 0 if self.prefix.registers is None else self.prefix.registers.shape[1]
        class_token = self.prefix.class_token is not None
        self.prefix = PrefixTokens(
            self.num_features, class_token=class_token, distillation_token=True, registers=registers
        )
        if isinstance(self.positions, LearnedPositions) and self.positions.prefix == int(class_token):
            self.positions = self.positions.with_prefix(1 + int(class_token))

    @property
    def distillation_index(self) -> int:
        """Index of the distillation token in the sequence."""
        return int(self.prefix.class_token is not None)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Return the pooled tokens and the distillation token, concatenated."""
        return torch.cat([super().pool_features(features), features[:, self.distillation_index]], dim=-1)

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k ..."]:
        """Return the mean logits of both classifiers.

        Args:
            pre_logits: return the mean of what enters the classifiers.
        """
        if self.unpooled:
            return super().forward_head(features)
        return classify_pair(self.to_latent(self.pool_features(features)), self.head, pre_logits=pre_logits)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both classifiers by new ones; the constructor's call, the first, adds the token."""
        if self.prefix.distillation_token is None:
            self.add_distillation_token()
        super().reset_classifier(num_classes, global_pool)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build both classifiers; the identity for no classes."""
        like = next(self.parameters())
        return make_classifier(self.num_features, num_classes, like=like, kind=DistilledHead)

    def to_vit(self) -> IsotropicModel:
        """Return the plain model that computes the class token's logits.

        The distillation token takes part in attention, so it stays as a register that nothing classifies, its
        position added to it. The weights are copies.
        """
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        token = state.pop("prefix.distillation_token")
        index, table = self.distillation_index, state.get("positions.table")
        if table is not None and self.positions is not None and self.positions.prefix > index:
            token = token + table[:, index : index + 1]
            state["positions.table"] = torch.cat([table[:, :index], table[:, index + 1 :]], dim=1)
        registers = [token, *([state["prefix.registers"]] if "prefix.registers" in state else [])]
        state["prefix.registers"] = torch.cat(registers, dim=1)
        for part in ("weight", "bias") if self.num_classes else ():
            state[f"head.{part}"] = state.pop(f"head.classifier.{part}")
            del state[f"head.distilled.{part}"]
        plain = self.build_plain().to(token)
        plain.load_state_dict(state)
        plain.default_cfg.update({**self.default_cfg, "architecture": type(plain).__name__})
        return plain.train(self.training)

    @staticmethod
    def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the plain model of `to_vit`, in which the token has become a register."""
        return {**config, "num_registers": config.get("num_registers", 0) + 1}

    def build_plain(self) -> IsotropicModel:
        """Build the model without the token."""
        return self.plain(**self.plain_config(self.config))


class DistillableViT(Distillable, ViT):
    """The ViT with a distillation token; takes the arguments of `ViT`.

    Raises:
        ValueError: as `ViT` does, and for `head.norm` and `head.hidden_dim`.
    """

    plain = ViT


class DistillableT2TViT(Distillable, T2TViT):
    """The T2T-ViT with a distillation token; takes the arguments of `T2TViT`."""

    plain = T2TViT


class DistillableEfficientViT(Distillable, EfficientViT):
    """A ViT around any encoder, with a distillation token; takes the arguments of `efficient.ViT`."""

    plain = EfficientViT

    def build_plain(self) -> IsotropicModel:
        """Build the model without the token, around a copy of the encoder."""
        return EfficientViT(**self.plain_config(self.config), transformer=copy.deepcopy(self.blocks))


# The student that is built in place of a plain model.
DISTILLABLE: dict[type[VisionModel], type[Distillable]] = {ViT: DistillableViT, T2TViT: DistillableT2TViT}


class TaughtStudent(nn.Module):
    """A student with two classifiers, and its teacher, which stays in eval mode and gets no gradients.

    Args:
        student: a model with two classifiers (`TwoHeads`): one of this module, or PiT or LeViT with
            `distilled=True`.
        teacher: any module from the student's images to logits (b, k), or to an output with an attribute
            `logits`, as models of transformers have.

    Raises:
        ValueError: if the student has no classifier for the teacher.
    """

    def __init__(self, student: VisionModel, teacher: nn.Module) -> None:
        super().__init__()
        if not isinstance(student.get_classifier(), TwoHeads):
            raise ValueError(
                "a student has a classifier for its distillation token, as models of "
                f"{' and '.join(kind.__name__ for kind in DISTILLABLE)} get for a teacher; got "
                f"{type(student).__name__} with {type(student.get_classifier()).__name__}"
            )
        self.student = student
        self.teacher = teacher.eval()

    def train(self, mode: bool = True) -> TaughtStudent:
        """Set the student to training or eval mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the logits (b, k) of the student's classifiers, of labels and of the teacher, and its own.

        Raises:
            ValueError: if the teacher has other classes.
        """
        head = self.student.get_classifier()
        assert isinstance(head, TwoHeads)
        features = self.student.forward_features(images)
        pooled = self.student.fc_norm(self.student.pool_features(features))
        logits, distilled = head.separate(self.student.pre_logits(pooled))
        taught = self.teacher_outputs(images)
        if taught.shape != distilled.shape:
            raise ValueError(
                f"expected logits of shape {tuple(distilled.shape)} from the teacher, "
                f"got {tuple(taught.shape)}"
            )
        return logits, distilled, taught

    @torch.no_grad()
    def teacher_outputs(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Compute the teacher's logits.

        Raises:
            ValueError: if its output holds no logits.
        """
        output = self.teacher(images)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise ValueError(f"expected logits from the teacher, got {type(output).__name__}")
        return logits


class DistillWrapper(TaughtStudent):
    """The loss of a student that learns from labels and from a teacher (section 4).

    The teacher stays in eval mode, gets no gradients, and follows the wrapper from device to device.

    Args:
        student: see `TaughtStudent`.
        teacher: see `TaughtStudent`.
        temperature: softens both distributions of the soft loss, in [0.01, 100].
        alpha: weight of the teacher's part, in [0, 1]; the label's part has 1 - `alpha`.
        hard: learn the teacher's decision like a label (equation 3) instead of its distribution (equation 2).

    Raises:
        ValueError: if a number is out of range, or the student has no classifier for the teacher.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        student: VisionModel,
        teacher: nn.Module,
        temperature: float = 1.0,
        alpha: float = 0.5,
        hard: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        check_weights(temperature, alpha)
        self.temperature = temperature
        self.alpha = alpha
        self.hard = hard

    def forward(  # type: ignore[override]
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | Float[Tensor, "b k"],
        temperature: float | None = None,
        alpha: float | None = None,
        **options: Any,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            labels: classes, or a distribution over them for each image.
            temperature: another temperature for this batch.
            alpha: another weight for this batch.
            options: passed to the cross entropy with the labels, such as `label_smoothing`.

        Raises:
            ValueError: if a number is out of range, or the teacher has other classes.
        """
        temperature = self.temperature if temperature is None else temperature
        alpha = self.alpha if alpha is None else alpha
        check_weights(temperature, alpha)
        logits, distilled, taught = super().forward(images)
        loss = F.cross_entropy(logits, labels, **options)
        return (1 - alpha) * loss + alpha * self.distillation_loss(distilled, taught, temperature)

    def distillation_loss(
        self, distilled: Float[Tensor, "b k"], targets: Float[Tensor, "b k"], temperature: float
    ) -> Float[Tensor, ""]:
        """Compute the teacher's part of the loss, the mean over images (equations 2 and 3)."""
        if self.hard:
            return F.cross_entropy(distilled, targets.argmax(dim=-1))
        student, teacher = (F.log_softmax(x / temperature, dim=-1) for x in (distilled, targets))
        return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def check_weights(temperature: float, alpha: float) -> None:
    """Check the numbers of a distillation loss.

    Raises:
        ValueError: if one is out of range.
    """
    if not 0.01 <= temperature <= 100:
        raise ValueError(f"temperature must be in [0.01, 100], got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
