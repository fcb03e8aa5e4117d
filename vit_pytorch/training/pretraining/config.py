"""What defines a pretraining: the method's settings, what is watched, and what every run has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vit_pytorch.data import Splits
from vit_pytorch.training.config import RunConfig
from vit_pytorch.training.optim import check_decay


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How a model learns without labels.

    Args:
        name: `mae`, `simmim`, `mpp`, `mp3`, `dino`, `esvit` or `lejepa`.
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MethodConfig):
    """Masked autoencoder (arXiv:2111.06377).

    Args:
        masking_ratio: Share of the patches that is hidden, in (0, 1).
        decoder_dim: Width of the decoder, a multiple of 4.
        decoder_depth: Number of the decoder's blocks.
        decoder_heads: Attention heads of the decoder.
        norm_pix_loss: Whether each patch's pixels are brought to mean 0 and variance 1 before the comparison.
        fixed_positions: Whether the model's learned positions are set to sines and cosines and do not learn.
    """

    name: str = "mae"
    masking_ratio: float = 0.75
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    norm_pix_loss: bool = True
    fixed_positions: bool = False


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(MethodConfig):
    """Masked image modelling with one linear layer (arXiv:2111.09886).

    Args:
        masking_ratio: Share of the squares that is covered, in (0, 1).
        mask_patch_size: Side of a square in pixels.
    """

    name: str = "simmim"
    masking_ratio: float = 0.6
    mask_patch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class MPPConfig(MethodConfig):
    """Masked patch prediction (arXiv:2010.11929, appendix B.1.2).

    Args:
        mask_prob: Share of the patches that is predicted, in (0, 1).
        replace_prob: Probability with which such a patch becomes the mask token.
        random_patch_prob: Probability with which it becomes another patch of its image.
        output_channel_bits: Bits of a channel of the colour that is predicted.
    """

    name: str = "mpp"
    mask_prob: float = 0.5
    replace_prob: float = 0.8
    random_patch_prob: float = 0.1
    output_channel_bits: int = 3


@dataclass(frozen=True, kw_only=True)
class MP3Config(MethodConfig):
    """Position prediction (arXiv:2207.07611).

    Args:
        masking_ratio: Share of the patches that is no context, in (0, 1).
        loss_on: Whether the positions of all patches are learned, or of those outside the context alone.
    """

    name: str = "mp3"
    masking_ratio: float = 0.75
    loss_on: Literal["all", "masked"] = "all"


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(MethodConfig):
    """How the views of an image are drawn, by methods that compare them.

    Args:
        num_local_crops: Number of local crops beside the two global ones.
        local_size: Size of the local crops in pixels; 3/7 of the model's input if left out.
        local_lower_crop_scale: Least part of the image's area in a local crop.
        local_upper_crop_scale: Greatest part of the image's area in a local crop.
        global_lower_crop_scale: Least part of the image's area in a global crop.
        flip: Probability of a horizontal flip of a crop.
        colour: Probability that brightness, contrast, saturation and hue change.
        grey: Probability that the colours are taken away.
        blur: Factor on the probabilities of a blur; of `dino` 1 and 0.1 for the global crops, otherwise 0.5.
        solarize: Probability that bright pixels of a crop are inverted; of `dino` only the second global one.
        source_size: Height and width of the images that crops are cut from; the model's input if left out.
    """

    num_local_crops: int = 8
    local_size: int | None = None
    local_lower_crop_scale: float = 0.05
    local_upper_crop_scale: float = 0.4
    global_lower_crop_scale: float = 0.4
    flip: float = 0.5
    colour: float = 0.8
    grey: float = 0.2
    blur: float = 1.0
    solarize: float = 0.2
    source_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DinoConfig(ViewsConfig):
    """Learning from a teacher that is the student's moving average (arXiv:2104.14294).

    Args:
        num_logits: Number of the heads' logits, K in the paper.
        hidden_dim: Width inside the projection heads.
        projection_layers: Linear layers of a head in front of its last, weight-normed one.
        bottleneck_dim: Width of what a head normalises.
        use_bn: Whether the heads have batch norm.
        norm_last_layer: Whether the rows of the last layer keep the length 1.
        freeze_last_layer_epochs: Length of the start in which the last layer does not learn; fractions count.
        hidden_layer: The layer that gives the embedding, by index or name; what enters the classifier if left
            out.
        student_temp: The student's temperature, in [0.001, 10].
        teacher_temp: The teacher's temperature after its warm-up, likewise.
        warmup_teacher_temp: The teacher's temperature at the start, likewise.
        warmup_teacher_temp_epochs: Length of the way from one to the other; fractions count.
        momentum: How much of the old teacher stays at a step, at the start.
        momentum_end: The same at the end; half a cosine leads there.
        center_decay: How much of the old centre stays at a step; 1 for no centring.
        weight_decay_end: Weight decay at the end, to which half a cosine leads from `optimizer.weight_decay`;
            constant if left out.
    """

    name: str = "dino"
    num_logits: int = 65536
    hidden_dim: int = 2048
    projection_layers: int = 3
    bottleneck_dim: int = 256
    use_bn: bool = False
    norm_last_layer: bool = True
    freeze_last_layer_epochs: float = 1.0
    hidden_layer: int | str | None = None
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: float = 30.0
    momentum: float = 0.996
    momentum_end: float = 1.0
    center_decay: float = 0.9
    weight_decay_end: float | None = 0.4

    def __post_init__(self) -> None:
        for name in ("student_temp", "teacher_temp", "warmup_teacher_temp"):
            if not 0.001 <= getattr(self, name) <= 10:
                raise ValueError(f"{name} must be in [0.001, 10], got {getattr(self, name)}")
        if self.num_logits < 2:
            raise ValueError(f"num_logits must be at least 2, got {self.num_logits}")
        # of 1 the teacher would stay at its random weights
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        for name in ("momentum_end", "center_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("freeze_last_layer_epochs", "warmup_teacher_temp_epochs"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.weight_decay_end is not None and not self.weight_decay_end > 0:
            raise ValueError(f"weight_decay_end must be positive, got {self.weight_decay_end}")


@dataclass(frozen=True, kw_only=True)
class EsViTConfig(DinoConfig):
    """DINO with a second task that matches regions, for models in stages (arXiv:2106.09785); see `dino`."""

    name: str = "esvit"


@dataclass(frozen=True, kw_only=True)
class LeJEPAConfig(ViewsConfig):
    """Prediction of views, and embeddings with a Gaussian distribution (arXiv:2511.08544).

    Args:
        embedding_dim: Width of the embeddings that are compared.
        hidden_dim: Width inside the projector.
        projection_layers: Linear layers of the projector.
        hidden_layer: The layer that gives the embedding, by index or name; what enters the classifier if left
            out.
        sigreg_weight: Weight of the distribution, in (0, 1); the prediction has the rest.
        num_slices: Random directions in which the distribution is compared, at each step.
    """

    name: str = "lejepa"
    embedding_dim: int = 128
    hidden_dim: int = 2048
    projection_layers: int = 3
    hidden_layer: int | str | None = None
    sigreg_weight: float = 0.05
    num_slices: int = 1024
    num_local_crops: int = 6
    local_upper_crop_scale: float = 0.3
    global_lower_crop_scale: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.sigreg_weight < 1:
            raise ValueError(f"sigreg_weight must be in (0, 1), got {self.sigreg_weight}")
        if self.num_slices < 1:
            raise ValueError(f"num_slices must be at least 1, got {self.num_slices}")


METHODS: dict[str, type[MethodConfig]] = {
    kind.name: kind
    for kind in (MAEConfig, SimMIMConfig, MPPConfig, MP3Config, DinoConfig, EsViTConfig, LeJEPAConfig)
}


def find_method(name: str) -> type[MethodConfig]:
    """Return the settings of a method.

    Raises:
        ValueError: Where there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"a method is one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What is watched while a model learns without labels.

    Args:
        knn_every: Epochs between measurements of the nearest neighbours' accuracy, for which alone labels are
            read; after the last epoch, too. Never if left out.
        neighbours: How many neighbours vote; fewer where there are fewer training images than by default.
        knn_images: Training images at most among which the neighbours are sought.
        pictures_every: Epochs between pictures of reconstructions or of attention; after the last, too. Never
            if left out.
        pictures: Number of validation images in them.
        least_spread: Spread of the features over the validation images below which they count as collapsed:
            0 where all have one direction, near 1 where they have all.
        least_information: How far the teacher must tell images apart, in nats: the entropy of its mean
            distribution less its mean entropy. Below, it says the same of every image.
        grace: Share of the epochs, at the start, that is not judged: features and teachers settle.
        patience: How many epochs in a row must look collapsed for the alarm.
    """

    knn_every: int | None = 5
    neighbours: int = 20
    knn_images: int = 10_000
    pictures_every: int | None = 10
    pictures: int = 8
    least_spread: float = 0.01
    least_information: float = 0.05
    grace: float = 0.3
    patience: int = 3

    def __post_init__(self) -> None:
        for name in ("knn_every", "neighbours", "knn_images", "pictures_every", "pictures", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"monitor.{name} must be at least 1, got {value}")
        if not 0 <= self.grace <= 1:
            raise ValueError(f"monitor.grace must be in [0, 1], got {self.grace}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """What defines a pretraining.

    Args:
        method: How the model learns.
        monitor: What is watched meanwhile.
        weights: What the model starts from: a run, a model folder, a weight file, `hf-hub:NAME` or a model's
            name; of a whole masked autoencoder the decoder, too. At random if left out.
        select: Which weights are kept: those of the `last` epoch; or, `knn`, those whose nearest neighbours
            are right most often in validation, measured after each epoch, and of what it starts from, too.
            If left out, `knn` where it starts from weights and the images have classes.
        anchor: Weight of the distance (1 - cosine) between the features of an image and those that the
            weights which it starts from give; it keeps what they know. 0 for none.
    """

    needs_labels = False

    method: MethodConfig
    weights: str | None = None
    select: Literal["last", "knn"] | None = None
    anchor: float = 0.0
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.anchor <= 1000:
            raise ValueError(f"anchor must be in [0, 1000], got {self.anchor}")
        if self.anchor and self.weights is None:
            raise ValueError(
                "anchor holds features to those of the weights that training starts from; give weights"
            )
        if self.augmentation.mixes:
            raise ValueError(
                "images are mixed for the sake of their labels, which pretraining does not use: "
                f"mixup and cutmix must be 0, got {self.augmentation.mixup} and {self.augmentation.cutmix}"
            )
        if self.data.max_tokens is not None:
            raise ValueError(
                f"pretraining takes images of one size, got data.max_tokens {self.data.max_tokens}"
            )
        if self.strategy == "fsdp":
            raise ValueError("pretraining runs by strategy 'auto' or 'ddp', got 'fsdp'")
        if isinstance(self.method, DinoConfig):
            if self.method.freeze_last_layer_epochs > self.epochs:
                raise ValueError(
                    f"method.freeze_last_layer_epochs must not exceed epochs = {self.epochs}, "
                    f"got {self.method.freeze_last_layer_epochs}"
                )
            check_decay("method.weight_decay_end", self.method.weight_decay_end or 0, self.optimizer.lr)
            if self.precision in ("bf16-true", "16-true"):
                number = self.precision.removesuffix("-true")
                raise ValueError(
                    f"a teacher that is a moving average stands still in {number}: "
                    f"take precision bf16-mixed, got {self.precision}"
                )
            if self.method.weight_decay_end is not None and not self.optimizer.weight_decay:
                raise ValueError(
                    "method.weight_decay_end needs an optimizer.weight_decay above 0 to start from, got 0"
                )

    def selects_by_knn(self, splits: Splits) -> bool:
        """Return whether the weights with the best nearest neighbours are kept.

        Raises:
            ValueError: Where that is asked for, and images have no classes.
        """
        if self.select == "knn" and not splits.classes:
            raise ValueError(
                f"select=knn needs images of classes, but {splits.unlabelled or 'there are none'}"
            )
        return self.select == "knn" or (
            self.select is None and self.weights is not None and bool(splits.classes)
        )

    @property
    def source_size(self) -> int | None:
        """Height and width of the images that a method is given, where it is not the model's input."""
        return self.method.source_size if isinstance(self.method, ViewsConfig) else None
