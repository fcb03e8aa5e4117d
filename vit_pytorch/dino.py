"""Emerging Properties in Self-Supervised Vision Transformers.

M. Caron, H. Touvron, I. Misra, H. Jégou, J. Mairal, P. Bojanowski, A. Joulin 2021, arXiv:2104.14294.

A student learns, without labels, to say of every crop of an image what a teacher says of the two large ones.
The teacher is the student's moving average; its logits are centred and sharpened, which keeps both from
collapsing.

Family: learning
Differs from the paper: crops have no low-pass and colours change in a fixed order; position tables are
interpolated with a low-pass; batch norm of the teacher, where there is any, has averaged statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from vit_pytorch.extractor import Extractor, find_layer
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.positions import interpolated_positions
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.ssl.backbone_utils import dummy_input, local_size, normalisation_of
from vit_pytorch.ssl.center import Centre
from vit_pytorch.ssl.heads import ProjectionHead
from vit_pytorch.ssl.schedules import Schedule, as_schedule
from vit_pytorch.ssl.teacher import MeanTeacher
from vit_pytorch.ssl.views import MultiCrop, dino_views, join_by_size

Layer = str | int | nn.Module
Views = Callable[[Tensor, Generator | None], Sequence[Tensor]]
MakeHead = Callable[[int], nn.Module]


class DinoLoss(nn.Module):
    """Cross-entropy of the student's views with the teacher's centred and sharpened ones (equation 3).

    Args:
        student_temp: the student's temperature.
        center_decay: how much of the old centre stays at an update.
    """

    @checks_arguments
    def __init__(self, num_classes: int, *, student_temp: float = 0.1, center_decay: float = 0.9) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.centre = Centre(num_classes, decay=center_decay)

    def forward(
        self, student: Float[Tensor, "v b k"], teacher: Float[Tensor, "q b k"], teacher_temp: float
    ) -> Float[Tensor, ""]:
        """Compute the mean over all pairs of a teacher's view and another view of the student, and the batch.

        Args:
            student: logits of all views.
            teacher: logits of the first of these views, the global ones.
            teacher_temp: the teacher's temperature.
        """
        said = self.centre(teacher, teacher_temp)
        heard = (student.float() / self.student_temp).log_softmax(dim=-1)
        with torch.autocast(student.device.type, enabled=False):
            pairs = -torch.einsum("qbk,vbk->qv", said, heard) / student.shape[1]
        return (pairs.sum() - pairs.diagonal().sum()) / (pairs.numel() - len(teacher))

    def update_centre(self) -> None:
        """Move the centre on, once after each step."""
        self.centre.update()


def loss_fn(
    teacher_logits: Float[Tensor, "b k"],
    student_logits: Float[Tensor, "b k"],
    teacher_temp: float,
    student_temp: float,
    centers: Float[Tensor, "1 k"],
    eps: float | None = None,
) -> Float[Tensor, ""]:
    """Compute the cross-entropy of two views, as the public package's function of this name.

    Half-precision logits are computed with in single precision.

    Args:
        teacher_logits: logits of one view; they get no gradients.
        student_logits: logits of another view.
        teacher_temp: the teacher's temperature.
        student_temp: the student's temperature.
        centers: what is subtracted from the teacher's logits.
        eps: accepted for old calls and not needed: no logarithm is taken of what may be 0.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    teacher, student, centers = (x.to(dtype) for x in (teacher_logits.detach(), student_logits, centers))
    targets = ((teacher - centers) / teacher_temp).softmax(dim=-1)
    return -(targets * (student / student_temp).log_softmax(dim=-1)).sum(dim=-1).mean()


class Student(nn.Module):
    """A model, and a head on its embedding.

    Args:
        net: the model; the object is kept.
        layer: what gives the embedding; see `Dino`.
        make_head: makes the head from the width of the embedding.
        sizes: of the crops that will come, (height, width) in pixels.

    Raises:
        ValueError: where the model has no such layer, or does not take such crops.

    Attributes:
        end: what the end of the model is called as a layer.
    """

    end = "to_latent"

    def __init__(
        self, net: nn.Module, layer: Layer | None, make_head: MakeHead, sizes: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        self.net = net
        self.layer: Any = None if layer is None or layer == self.end else self.find(layer)
        with eval_mode(net), torch.no_grad(), interpolated_positions(net):
            tried = [self.embed(dummy_input(net, size)) for size in sizes]
        self.add_heads(make_head, tried[0])

    def find(self, layer: Layer) -> str | int:
        """Name a layer of the model as `embed` wants it."""
        return find_layer(self.net, layer)

    def add_heads(self, make_head: MakeHead, embedded: Any) -> None:
        """Build the head for what `embed` gives."""
        self.head = make_head(embedded.shape[1])

    def embed(self, images: Float[Tensor, "b c h w"]) -> Any:
        """Compute the embeddings (b, d) of images of one size."""
        net: Any = self.net
        if self.layer is None:
            return net.forward_head(net.forward_features(images), pre_logits=True)
        watch = Extractor(net, self.layer, return_embeddings_only=True, detach=False, clone=False)
        found = watch(images)
        if not isinstance(found, Tensor) or found.ndim not in (2, 3):
            raise ValueError(f"layer {self.layer} gives no vector (b d) and no tokens (b n d) of images")
        if found.ndim == 2:
            return found
        return found[:, 0] if getattr(net, "num_prefix_tokens", 0) else found.mean(dim=1)

    def forward(self, crops: Sequence[Float[Tensor, "b c _ _"]], *, freeze_last_layer: bool = False) -> Any:
        """Compute the logits (v, b, k) of all crops; the model runs once for each size, the head once.

        Args:
            crops: views of one batch, those of one size beside each other.
            freeze_last_layer: whether the head's last layer, that of `ProjectionHead`, has no gradients.
        """
        with interpolated_positions(self.net):
            embedded = torch.cat([self.embed(batch) for batch in join_by_size(crops)])
        options = {"freeze_last_layer": True} if freeze_last_layer else {}
        logits: Tensor = self.head(embedded, **options)
        return logits.unflatten(0, (len(crops), -1))


class Dino(nn.Module):
    """Learning without labels from a teacher that is the student's moving average.

    A step is `loss = learner(images)`, its backward pass, the optimizer's step, and then
    `learner.update_moving_average()`, which moves the teacher, its centre and the schedules on. The model is
    the object that was passed in, and what is kept afterwards. Smaller crops are whole pictures to it: its
    positions are interpolated while it learns here.

    Args:
        net: a model of this package, or one of timm (a ViT made with `dynamic_img_size=True`).
        image_size: size of the global crops, one number or (height, width) in pixels.
        hidden_layer: what gives the embedding. "to_latent", as None, is what enters the classifier; otherwise
            it is a layer as `Extractor` takes it, which gives a vector, or tokens, of which the class token
            is taken, or the mean where there is none.
        projection_hidden_size: width inside the projection head.
        projection_layers: linear layers of the projection head in front of its last, weight-normed one.
        num_classes_K: number of logits.
        student_temp: the student's temperature.
        teacher_temp: the teacher's temperature, or a function that gives it from the step; the paper's is
            `LinearSchedule(0.04, 0.07, steps)`.
        local_upper_crop_scale: greatest part of the image's area in a local crop.
        global_lower_crop_scale: least part of the image's area in a global crop.
        moving_average_decay: how much of the old teacher stays at an update, or a function that gives it from
            the step; the paper's is `CosineSchedule(0.996, 1.0, steps)`.
        center_moving_average_decay: how much of the old centre stays at an update.
        bottleneck_dim: width of what the projection head normalises.
        use_bn: whether the projection head has batch norm.
        norm_last_layer: whether the rows of the last layer keep the length 1.
        freeze_last_layer: number of steps at the start in which the last layer does not learn; those of an
            epoch in the paper.
        num_local_crops: number of local crops.
        local_image_size: size of the local crops; None for 3/7 of the global ones', as 96 of 224 pixels are,
            rounded to the model's patches.
        views: gives the crops of a batch from the images and a generator, or None, the two global ones first;
            None for the paper's `MultiCrop`.

    Raises:
        ValueError: where the model has no such layer, or sizes, scales or decays are not what they must be.
    """

    steps: Tensor

    @checks_arguments
    def __init__(
        self,
        net: nn.Module,
        *,
        image_size: int | Sequence[int],
        hidden_layer: Layer | None = None,
        projection_hidden_size: int = 2048,
        projection_layers: int = 3,
        num_classes_K: int = 65536,  # noqa: N803
        student_temp: float = 0.1,
        teacher_temp: float | Schedule = 0.04,
        local_upper_crop_scale: float = 0.4,
        global_lower_crop_scale: float = 0.4,
        moving_average_decay: float | Schedule = 0.996,
        center_moving_average_decay: float = 0.9,
        bottleneck_dim: int = 256,
        use_bn: bool = False,
        norm_last_layer: bool = True,
        freeze_last_layer: int = 0,
        num_local_crops: int = 8,
        local_image_size: int | Sequence[int] | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        large = pair(image_size)
        small = local_size(net, large) if local_image_size is None else pair(local_image_size)
        drawn = dino_views(
            large,
            small,
            num_local=num_local_crops,
            global_lower=global_lower_crop_scale,
            local_upper=local_upper_crop_scale,
        )
        self.views = MultiCrop(drawn, *normalisation_of(net)) if views is None else views
        self.teacher_temp = as_schedule(teacher_temp)
        self.decay = as_schedule(moving_average_decay)
        self.freeze_last_layer = freeze_last_layer
        make_head = partial(
            ProjectionHead,
            out_dim=num_classes_K,
            hidden_dim=projection_hidden_size,
            bottleneck_dim=bottleneck_dim,
            layers=projection_layers,
            use_bn=use_bn,
            norm_last_layer=norm_last_layer,
        )
        sizes = (large, small) if num_local_crops and views is None else (large,)
        self.student = self.make_student(net, hidden_layer, make_head, sizes)
        self.teacher = MeanTeacher(self.student)
        self.criterion = self.make_criterion(
            num_classes_K, student_temp=student_temp, center_decay=center_moving_average_decay
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.to(next(net.parameters()))

    def make_student(
        self, net: nn.Module, layer: Layer | None, make_head: MakeHead, sizes: Sequence[tuple[int, int]]
    ) -> nn.Module:
        """Put a head, or more, on the model."""
        return Student(net, layer, make_head, sizes)

    def make_criterion(self, num_classes: int, *, student_temp: float, center_decay: float) -> Any:
        """Build what compares the student's and the teacher's output."""
        return DinoLoss(num_classes, student_temp=student_temp, center_decay=center_decay)

    def forward(
        self,
        images: Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b c _ _"]],
        generator: Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            images: images as the model takes them, of any size; or the crops of a batch, the two global ones
                first.

        Raises:
            ValueError: for less than two crops.
        """
        crops = self.views(images, generator) if isinstance(images, Tensor) else images
        if len(crops) < 2:
            raise ValueError(f"a batch has two global crops and local ones, got {len(crops)} in all")
        step = int(self.steps)
        student = self.student(crops, freeze_last_layer=step < self.freeze_last_layer)
        return self.criterion(student, self.teacher(crops[:2]), self.teacher_temp(step))

    def update_moving_average(self) -> None:
        """Move the teacher, its centre and the step on; once, after the optimizer's step.

        The centre moves here alone, towards the mean of what the teacher has said in training since.
        """
        self.teacher.update(self.student, self.decay(int(self.steps)))
        self.criterion.update_centre()
        self.steps += 1
