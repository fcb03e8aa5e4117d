"""From a method's settings to what learns, and from what learned to the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.data import Preprocessing
from vit_pytorch.data.seeding import generator_for
from vit_pytorch.dino import Dino
from vit_pytorch.es_vit import EsViTTrainer
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.lejepa import LeJEPA, lejepa_views
from vit_pytorch.mae import MAE
from vit_pytorch.mp3 import MP3
from vit_pytorch.mpp import MPP
from vit_pytorch.simmim import SimMIM
from vit_pytorch.ssl.backbone import Backbone
from vit_pytorch.ssl.backbone_utils import local_size
from vit_pytorch.ssl.center import Centre
from vit_pytorch.ssl.heads import NormedLinear
from vit_pytorch.ssl.schedules import CosineSchedule, LinearSchedule
from vit_pytorch.ssl.views import MultiCrop, View, dino_views
from vit_pytorch.training.pretraining.config import (
    DinoConfig,
    EsViTConfig,
    LeJEPAConfig,
    MAEConfig,
    MethodConfig,
    MP3Config,
    MPPConfig,
    SimMIMConfig,
    ViewsConfig,
)
from vit_pytorch.training.probing import embed

HINT = "; dino, esvit and lejepa teach models that are no such sequence"


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Args:
        epochs: Passes over the images.
        epoch_steps: Steps of the optimizer in each.
    """

    epochs: int
    epoch_steps: int

    @classmethod
    def of(cls, images: int, *, epochs: int, batch: int, accumulate: int) -> Length:
        """Count the steps of a training.

        Args:
            images: In an epoch; those that do not fill a batch are left out.
            epochs: Passes over them.
            batch: Images of all processes in one batch.
            accumulate: Batches of one step; the last step of an epoch may have fewer.
        """
        return cls(epochs, -(-max(1, images // batch) // accumulate))

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.epoch_steps

    def after(self, epochs: float) -> int:
        """Steps in so many epochs."""
        return round(epochs * self.epoch_steps)


def make_method(
    config: MethodConfig, model: VisionModel, prep: Preprocessing, length: Length, *, name: str
) -> nn.Module:
    """Put a method around a model, which learns.

    Args:
        config: The method's settings.
        model: The model; the object is kept.
        prep: How its images are prepared.
        length: Of the training, for what moves with the step.
        name: What to call the model in messages.

    Raises:
        ValueError: Where the method cannot teach such a model; says why.
    """
    if len(model.image_size) != 2:
        raise ValueError(f"method {config.name} teaches models of images, {name} takes other input")
    try:
        method = _wrap(config, model, prep, length)
        _try(method, prep)
    except ValueError as error:
        hint = "" if isinstance(config, ViewsConfig) or isinstance(model, Backbone) else HINT
        if isinstance(config, ViewsConfig) and config.local_size is not None:
            rows, _ = local_size(model, (prep.image_size[0], prep.image_size[1]))
            if rows != config.local_size:
                hint = (
                    f"; method.local_size, the pixels of small crops, is {config.local_size}, "
                    f"and {rows} would do"
                )
        raise ValueError(f"method {config.name} cannot teach {name}: {error}{hint}") from error
    return method


def _wrap(config: MethodConfig, model: VisionModel, prep: Preprocessing, length: Length) -> nn.Module:
    # the settings of these four methods have the names of their classes' arguments
    own = {key: value for key, value in vars(config).items() if key != "name"}
    if isinstance(config, MAEConfig):
        return MAE(encoder=model, **own)
    if isinstance(config, SimMIMConfig):
        return SimMIM(encoder=model, **own)
    if isinstance(config, MPPConfig):
        mean, std = (tuple(v) * (prep.channels // len(v)) for v in (prep.mean, prep.std))
        return MPP(transformer=model, mean=mean, std=std, **own)
    if isinstance(config, MP3Config):
        return MP3(vit=model, **own)
    assert isinstance(config, ViewsConfig), "the others compare views"
    size = (prep.image_size[0], prep.image_size[1])
    small = local_size(model, size) if config.local_size is None else (config.local_size,) * 2
    if config.local_size is not None and config.local_size >= max(size):
        raise ValueError(f"local crops must be smaller than the global ones of {size[0]} x {size[1]} pixels")
    views = MultiCrop(views_of(config, size, small), tuple(prep.mean), tuple(prep.std))
    if isinstance(config, LeJEPAConfig):
        return LeJEPA(
            model,
            image_size=size,
            hidden_layer=config.hidden_layer,
            projection_hidden_size=config.hidden_dim,
            num_classes_K=config.embedding_dim,
            projection_layers=config.projection_layers,
            target_loss_weight=1 - config.sigreg_weight,
            sigreg_loss_weight=config.sigreg_weight,
            sigreg_loss_kwargs={"num_slices": config.num_slices},
            views=views,
        )
    assert isinstance(config, DinoConfig), "the others have a teacher"
    warm_up = length.after(config.warmup_teacher_temp_epochs)
    temperatures = (
        LinearSchedule(config.warmup_teacher_temp, config.teacher_temp, warm_up) if warm_up else None
    )
    method = (EsViTTrainer if isinstance(config, EsViTConfig) else Dino)(
        model,
        image_size=size,
        hidden_layer=config.hidden_layer,
        projection_hidden_size=config.hidden_dim,
        projection_layers=config.projection_layers,
        num_classes_K=config.num_logits,
        student_temp=config.student_temp,
        teacher_temp=temperatures or config.teacher_temp,
        moving_average_decay=CosineSchedule(config.momentum, config.momentum_end, length.steps),
        center_moving_average_decay=config.center_decay,
        bottleneck_dim=config.bottleneck_dim,
        use_bn=config.use_bn,
        norm_last_layer=config.norm_last_layer,
        freeze_last_layer=length.after(config.freeze_last_layer_epochs),
        num_local_crops=config.num_local_crops,
        local_image_size=small,
    )
    method.views = views
    return method


def _try(method: nn.Module, prep: Preprocessing) -> None:
    """Compute a loss of black images, so that what does not fit is known before anything is written.

    What takes no part in it, such as positions that a method leaves out, does not learn: several processes
    wait for the gradients of everything that does.
    """
    images = next(method.parameters()).new_zeros(2, prep.channels, *prep.image_size)
    with eval_mode(method), torch.enable_grad():
        method(images, generator=generator_for(0)).backward()
    last = {id(parameter) for parameter in last_layers(method)}
    for parameter in method.parameters():
        if parameter.grad is None and id(parameter) not in last:
            parameter.requires_grad_(False)
        parameter.grad = None


def last_layers(method: nn.Module) -> list[nn.Parameter]:
    """Return what learns of the student's heads' last layers; nothing where there is no teacher."""
    if not isinstance(method, Dino):
        return []
    heads = (module for module in method.student.modules() if isinstance(module, NormedLinear))
    return [parameter for head in heads for parameter in head.parameters() if parameter.requires_grad]


def views_of(config: ViewsConfig, size: tuple[int, int], small: tuple[int, int]) -> tuple[View, ...]:
    """Return a method's views with the distortions that a configuration asks for."""
    draw = lejepa_views if isinstance(config, LeJEPAConfig) else dino_views
    drawn = draw(size, small, num_local=config.num_local_crops)
    whole = (config.global_lower_crop_scale, 1.0)
    part = (config.local_lower_crop_scale, config.local_upper_crop_scale)
    return tuple(
        replace(
            view,
            scale=whole if number < 2 else part,
            flip=config.flip,
            colour=config.colour,
            grey=config.grey,
            blur=view.blur * config.blur,
            solarize=config.solarize if view.solarize else 0.0,
        )
        for number, view in enumerate(drawn)
    )


def backbone_of(method: nn.Module) -> VisionModel:
    """Return the model that a method leaves: that of the teacher where there is one."""
    learned: Any = method
    if isinstance(method, Dino):
        return learned.teacher.model.net
    if isinstance(method, LeJEPA):
        return learned.encoder.net
    (name,) = {"encoder", "transformer", "vit"} & dict(method.named_children()).keys()
    return getattr(learned, name)


def learner_of(method: nn.Module) -> VisionModel:
    """Return the model that learns by gradients: that of the student where there is one."""
    learned: Any = method
    return learned.student.net if isinstance(method, Dino) else backbone_of(method)


def teacher_outputs(
    method: Dino, images: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
    """Return a teacher's features of images, which would enter the classifier, and what it says of them.

    That is its centred and sharpened distributions.

    Args:
        method: In eval, where its centre takes no note of what is asked.
        images: As the model takes them.
    """
    learned: Any = method
    student = learned.teacher.model
    embedded = student.embed(images)
    view = embedded[0] if isinstance(embedded, tuple) else embedded
    features = view if student.layer is None else embed(student.net, images)
    return features, centre_of(method)(student.head(view), method.teacher_temp(int(method.steps)))


def centre_of(method: Dino) -> Centre:
    """Return the centre of the views' logits."""
    loss = method.criterion
    return loss.views.centre if isinstance(method, EsViTTrainer) else loss.centre


@torch.no_grad()
def forget_step(method: Dino) -> None:
    """Discard what a step that was not taken has left: neither the teacher nor the centres move."""
    for module in method.modules():
        if isinstance(module, Centre):
            module.total.zero_()
    method.steps += 1
