"""LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics.

R. Balestriero, Y. LeCun 2025, arXiv:2511.08544.

Embeddings of all views of an image are drawn to the mean of its global views, and those of a batch to an
isotropic Gaussian, which keeps them from collapsing: no teacher, no stopped gradient, no schedule.

Family: learning
Differs from the paper: crops have no low-pass and colours change in a fixed order; position tables are
interpolated with a low-pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Generator, Tensor, nn

from vit_pytorch.dino import Layer, Student, Views
from vit_pytorch.layers.arguments import check_names, checks_arguments
from vit_pytorch.layers.patches import pair
from vit_pytorch.ssl.backbone_utils import local_size, normalisation_of
from vit_pytorch.ssl.sigreg import sigreg_loss
from vit_pytorch.ssl.teacher import MeanTeacher
from vit_pytorch.ssl.views import MultiCrop, View


class Projector(nn.Sequential):
    """Perceptron with batch norm in front of its activations.

    Args:
        dim: width of the embedding.
        out_dim: width of what is projected.
        hidden_dim: width of the hidden layers.
        layers: linear layers, at least 1.
    """

    @checks_arguments
    def __init__(self, dim: int, out_dim: int, *, hidden_dim: int = 2048, layers: int = 3) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * (layers - 1)]
        for before, after in pairwise(widths):
            self.extend([nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()])
        self.append(nn.Linear(widths[-1], out_dim))


class LeJEPA(nn.Module):
    """Learning without labels by prediction of views and a Gaussian distribution of embeddings.

    A step is `loss = learner(images)`, its backward pass, and the optimizer's step. The model is the object
    that was passed in, and what is kept afterwards.

    The arguments are the public package's, with the paper's defaults. Differs from the public package: there,
    only local crops get gradients and each is compared with the global crop of another distortion, SIGReg has
    no factor of the number of samples, both weights are 1, all crops have the size `image_size`, and the
    projector normalises lengths instead of having batch norm. `views` takes the place of `augment_fn` and
    `augment_fn2`.

    Args:
        net: a model of this package, or one of timm (a ViT made with `dynamic_img_size=True`)
        image_size: size of the global crops, one number or (height, width) in pixels
        hidden_layer: what gives the embedding, as in `Dino`; default what enters the classifier
        projection_hidden_size: width inside the projector
        num_classes_K: width of what is projected
        projection_layers: linear layers of the projector
        local_upper_crop_scale: greatest part of the image's area in a local crop
        global_lower_crop_scale: least part of the image's area in a global crop
        use_ema: whether a moving average of the model embeds the global views, without gradients, which is
            not in the paper; default `not use_sigreg`, without that whether `moving_average_decay` is given
        moving_average_decay: how much of the old average stays at an update; default 0.99
        use_sigreg: whether SIGReg is part of the loss; default `not use_ema`
        target_loss_weight: weight of the prediction, 1 - lambda in the paper
        sigreg_loss_weight: weight of SIGReg, lambda in the paper
        sigreg_loss_kwargs: further arguments of `sigreg_loss`
        num_local_crops: number of local crops
        local_image_size: size of the local crops; default 3/7 of the global ones', rounded to patches
        views: gives the crops of a batch from the images and a generator, or None, the two global ones first;
            default the paper's `MultiCrop`

    Raises:
        ValueError: if the model has no such layer, sizes or scales are not what they must be, or nothing
            keeps embeddings from collapsing.
    """

    target_encoder: MeanTeacher | None

    @checks_arguments
    def __init__(
        self,
        net: nn.Module,
        image_size: int | Sequence[int],
        hidden_layer: Layer | None = None,
        projection_hidden_size: int = 2048,
        num_classes_K: int = 128,  # noqa: N803
        projection_layers: int = 3,
        local_upper_crop_scale: float = 0.3,
        global_lower_crop_scale: float = 0.3,
        use_ema: bool | None = None,
        moving_average_decay: float | None = None,
        use_sigreg: bool | None = None,
        target_loss_weight: float = 0.95,
        sigreg_loss_weight: float = 0.05,
        sigreg_loss_kwargs: Mapping[str, Any] | None = None,
        *,
        num_local_crops: int = 6,
        local_image_size: int | Sequence[int] | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        if use_ema is None:
            use_ema = moving_average_decay is not None if use_sigreg is None else not use_sigreg
        elif moving_average_decay is not None and not use_ema:
            raise ValueError(
                f"moving_average_decay needs use_ema, got {moving_average_decay} and use_ema=False"
            )
        self.use_ema = use_ema
        self.use_sigreg = not use_ema if use_sigreg is None else use_sigreg
        if not (self.use_sigreg or use_ema):
            raise ValueError("embeddings collapse without use_sigreg and without use_ema; set one of them")
        large = pair(image_size)
        small = local_size(net, large) if local_image_size is None else pair(local_image_size)
        drawn = lejepa_views(
            large,
            small,
            num_local=num_local_crops,
            global_lower=global_lower_crop_scale,
            local_upper=local_upper_crop_scale,
        )
        self.views = MultiCrop(drawn, *normalisation_of(net)) if views is None else views
        self.decay = 0.99 if moving_average_decay is None else moving_average_decay
        self.target_loss_weight = target_loss_weight
        self.sigreg_loss_weight = sigreg_loss_weight
        self.sigreg_loss_kwargs = dict(sigreg_loss_kwargs or {})
        check_names(sigreg_loss, self.sigreg_loss_kwargs, owner="sigreg_loss")
        make_head = partial(
            Projector, out_dim=num_classes_K, hidden_dim=projection_hidden_size, layers=projection_layers
        )
        sizes = (large, small) if num_local_crops and views is None else (large,)
        self.encoder = Student(net, hidden_layer, make_head, sizes)
        self.target_encoder = MeanTeacher(self.encoder) if use_ema else None
        self.to(next(net.parameters()))

    def forward(
        self,
        images: Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b c _ _"]],
        generator: Generator | None = None,
        *,
        return_embedding: bool = False,
        return_projection: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss of a batch, or embeddings of images.

        Args:
            images: images as the model takes them, of any size; or the crops of a batch, the two global ones
                first.
            generator: random numbers of the views and of SIGReg's directions; default torch's.
            return_embedding: whether embeddings of the images (b d) are returned instead of the loss.
            return_projection: whether their projections (b k) are returned in front of them.

        Raises:
            ValueError: for less than two crops.
        """
        if return_embedding:
            if not isinstance(images, Tensor):
                raise ValueError(f"embeddings are those of a batch of images, got {len(images)} crops")
            embedded: Tensor = self.encoder.embed(images)
            return (self.encoder.head(embedded), embedded) if return_projection else embedded
        crops = self.views(images, generator) if isinstance(images, Tensor) else images
        if len(crops) < 2:
            raise ValueError(f"a batch has two global crops and local ones, got {len(crops)} in all")
        projected = self.encoder(crops)
        targets = projected[:2] if self.target_encoder is None else self.target_encoder(crops[:2])
        loss = (targets.float().mean(dim=0) - projected.float()).square().mean() * self.target_loss_weight
        if self.use_sigreg:
            options = {"generator": generator, "gather": self.training, **self.sigreg_loss_kwargs}
            loss = loss + sigreg_loss(projected, **options) * self.sigreg_loss_weight
        return loss

    @property
    def has_sigreg_loss(self) -> bool:
        """Whether SIGReg is part of the loss, as the public package names it; equals `use_sigreg`."""
        return self.use_sigreg

    def update_moving_average(self) -> None:
        """Move the average of the model on; once, after the optimizer's step.

        Raises:
            ValueError: without `use_ema`.
        """
        if self.target_encoder is None:
            raise ValueError("there is no moving average: build LeJEPA with use_ema=True")
        self.target_encoder.update(self.encoder, self.decay)


def lejepa_views(
    image_size: tuple[int, int],
    local_size: tuple[int, int],
    *,
    num_local: int = 6,
    global_lower: float = 0.3,
    local_upper: float = 0.3,
) -> tuple[View, ...]:
    """Return LeJEPA's views: two global and local ones, distorted alike.

    Args:
        image_size: size of the global views.
        local_size: size of the local views.
        num_local: number of local views.
        global_lower: least part of the area in a global view; at most all of it.
        local_upper: greatest part of the area in a local view; at least a twentieth.
    """
    return (
        *[View(image_size, (global_lower, 1.0), solarize=0.2)] * 2,
        *[View(local_size, (min(0.05, local_upper), local_upper), solarize=0.2)] * num_local,
    )
