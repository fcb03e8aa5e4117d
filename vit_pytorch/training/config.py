"""What defines a training run: one typed description, the same on the command line and in files."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from vit_pytorch.data import Augmentation, StreamConfig, TaskName, VideoConfig, VolumeConfig
from vit_pytorch.data.loader import check_workers
from vit_pytorch.data.record import RECORD
from vit_pytorch.data.sources import absolute_source, with_columns
from vit_pytorch.distill import check_weights
from vit_pytorch.learnable_memory_vit import Mode
from vit_pytorch.preprocessing import CropMode, Interpolation, is_range
from vit_pytorch.registry import find_entry
from vit_pytorch.storage import write_file
from vit_pytorch.training.losses import SELECTIONS, WEIGHTED, LossConfig
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]
StrategyName = Literal["auto", "ddp", "fsdp"]
CONFIG = "config.yaml"
# what `min_steps_per_epoch` leaves of a batch at least
LEAST_BATCH = 8
# what stands for a named model's own weights
PUBLISHED = "published"
# what stands between several labels of a cell, by default
SEPARATOR = "|"
# settings that may be paths, in addition to the data and to what a pretraining starts from
STARTS = (("tuning", "weights"), ("distillation", "teacher"))
# settings that may differ when a run is resumed, since they act from there on; a section stands for all that
# are in it
RESUMABLE = (
    *("epochs", "schedule", "optimizer.lr", "optimizer.weight_decay", "clip", "on_nonfinite"),
    *("devices", "num_nodes", "strategy", "accelerator", "precision", "compile"),
    *("activation_checkpointing", "process_timeout"),
    *("workers", "data.source", "data.worker_timeout", "data.on_bad", "data.changed"),
    *("patience", "save_every", "save_sharded", "logger", "profile", "monitor"),
)
# how a configuration that is whole ends, and what is the last setting in those of version 0.1
END = re.compile(r"^(\.\.\.$\s*\Z|ema:|monitor:)", re.MULTILINE)
ConfigT = TypeVar("ConfigT", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, and how they are prepared for the model.

    Args:
        source: `digits`, FOLDER, `csv:FILE`, `idx:FOLDER`, `hf:NAME`, `wds:PATTERN`, `stream:PATTERN`,
            `video:FOLDER` or `nifti:FOLDER`.
        channels: 1 for grey, 3 for RGB; as the data has it if left out.
        mean: Subtracted from values 0 to 1, one number or one a channel, in [0, 1]; the model's own if
            left out.
        std: Divides after that, in [0.001, 1]; likewise.
        interpolation: How images are resized; the model's own if left out.
        crop_pct: Part of the resized image that evaluation's centre crop keeps; the model's own if left out.
        crop_mode: Whether images keep their aspect ratio before that crop (`center`, `border`) or not
            (`squash`); the model's own if left out.
        max_tokens: Patches of an image at most, for models that take images of different sizes (`navit_*`):
            images then keep their aspect ratio. One size, the model's, if left out.
        video: Which frames of a video are taken.
        volume: How volumes are brought to one intensity and size.
        val_fraction: Part of each class held out for validation, where the data has no such split.
        test_fraction: Part of each class held out for the test, where the data is not split at all.
        split_seed: Chooses the images that are held out; the run's seed if left out.
        worker_timeout: Seconds that a batch may take before its worker counts as hanging.
        on_bad: Whether an image that cannot be decoded stops the run or is skipped and counted.
        changed: Whether a run whose images are not those it began with is not resumed, or goes on with those
            that are the same, in the splits that they were in.
        image_column: Column of a table (`csv:`, `hf:`) that has the images; found by its name if left out.
        label_column: Column that has the labels; likewise. Of a regression one column, or several with commas
            between.
        label_separator: What stands between several labels in a cell, for `--task multilabel`.
        image_root: Folder that paths in a `csv:` table are relative to; the table's own if left out.
        split_column: Column of a `csv:` table that has the splits; likewise, or there is none.
        window: Values of an image's file that become black and white, low and high, for images of more than
            8 bits that use a part of their range; `auto` for those of the training images; the whole range if
            left out.
        in_memory: Whether images of one size are read once and held in memory; if left out, small ones: not
            larger than the model's input of at most 64 pixels, at most 512 MiB of a split.
        epoch_samples: Images of an epoch, over all processes, of `stream:` data, which have no length.
        classes: Of `stream:` data, a file with the name of a class in each line, or the number of classes.
        val: Of `stream:` data, the pattern of local shards with the validation images.
    """

    source: str = "digits"
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    max_tokens: int | None = None
    video: VideoConfig = field(default_factory=VideoConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int | None = None
    worker_timeout: float = 120.0
    on_bad: Literal["stop", "skip"] = "stop"
    changed: Literal["stop", "keep"] = "stop"
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    label_separator: str = SEPARATOR
    image_root: str | None = None
    window: tuple[float, float] | Literal["auto"] | None = None
    in_memory: bool | None = None
    epoch_samples: int | None = None
    classes: str | int | None = None
    val: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.window, tuple) and not is_range(self.window):
            raise ValueError(f"data.window must be a range (low, high) with low < high, got {self.window}")
        for name, least in {"mean": 0.0, "std": 0.001}.items():
            values = getattr(self, name) or ()
            # what is not finite is named by the run's own check
            if any(value < least or 1 < value < math.inf for value in values):
                raise ValueError(
                    f"data.{name} must be in [{least:g}, 1], since values are 0 to 1 (those of 0 to 255 are "
                    f"divided by 255), got {values}"
                )
        if self.channels is not None:
            self.check_channels(self.channels)
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"data.crop_pct must be above 0 and at most 1, got {self.crop_pct}")
        for name in ("channels", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, got {self.val_fraction}")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"data.test_fraction must be in [0, 1), got {self.test_fraction}")

    def check_channels(self, channels: int) -> None:
        """Check that mean and std have one value, or one a channel.

        Raises:
            ValueError: They have not.
        """
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if values is not None and len(values) not in (1, channels):
                raise ValueError(f"data.{name} must have 1 or {channels} values, got {len(values)}")

    @property
    def stream(self) -> StreamConfig:
        """What a stream does not say by itself."""
        return StreamConfig(epoch_samples=self.epoch_samples, classes=self.classes, val=self.val)

    @property
    def spec(self) -> str:
        """The data with its columns, as `open_data` takes it."""
        columns = {"image": self.image_column, "label": self.label_column, "split": self.split_column}
        separator = None if self.label_separator == SEPARATOR else self.label_separator
        return with_columns(self.source, {**columns, "separator": separator, "root": self.image_root})


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What a run starts from, and which weights learn.

    Args:
        weights: A run, a model folder, a weight file, `hf-hub:NAME`, or `published` for the named model's
            own, under a new classifier of zeros; the model starts at random if left out.
        method: What learns: `full` for everything, `head` for the classifier alone (a linear probe), `lora`
            for low-rank updates of the attention (arXiv:2106.09685) and the classifier, `memory` for memory
            tokens in every layer, a class token and the classifier (arXiv:2203.15243).
        rank: Rank of the updates of `lora`, at most the width of the layers that it updates.
        alpha: The updates of `lora` are scaled by alpha / rank, which is at most 100.
        memories: Memory tokens of a layer, for `memory`; at most 10,000.
        memory_mode: `extend` leaves the model's own tokens unaware of the memory; with `finetune` all tokens
            see it, and the new class token takes the place of the old one.
    """

    weights: str | None = None
    method: Literal["full", "head", "lora", "memory"] = "full"
    rank: int = 8
    alpha: int = 16
    memories: int = 10
    memory_mode: Mode = "extend"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"rank and alpha must be at least 1, got {self.rank} and {self.alpha}")
        if self.alpha > 100 * self.rank:
            raise ValueError(f"alpha must be at most 100 x rank = {100 * self.rank}, got {self.alpha}")
        if not 0 <= self.memories <= 10_000:
            raise ValueError(f"memories must be in [0, 10000], got {self.memories}")
        if self.method != "full" and self.weights is None:
            raise ValueError(f"method {self.method!r} needs weights to start from, got none")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What a run learns from beside the labels (DeiT, arXiv:2012.12877, section 4), or values.

    Args:
        teacher: A run or a model folder, or a named model, which comes with its published weights; no
            teacher if left out.
        temperature: Softens both distributions where `hard` is off, in [0.01, 100].
        alpha: Weight of the teacher's part of the loss, in [0, 1].
        hard: Whether the teacher's decision is learned like a label, rather than its distribution; its
            decision on several labels are those that reach its thresholds, on values these themselves.
    """

    teacher: str | None = None
    temperature: float = 3.0
    alpha: float = 0.5
    hard: bool = True

    def __post_init__(self) -> None:
        check_weights(self.temperature, self.alpha)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run is defined by, whatever it learns.

    Args:
        model: The `name` of a model in the registry, and arguments of its class that differ.
        data: Which images, how they are split and prepared.
        augmentation: How training images vary.
        optimizer: How weights are updated.
        schedule: The course of the learning rate.
        epochs: Passes over the training images.
        batch_size: Images of one optimizer step, over all devices and accumulated batches together.
        min_steps_per_epoch: Optimizer steps that an epoch shall have: where training images are few,
            `batch_size` is halved until there are as many, down to 8. It stays as it is if left out, as it is
            by a recipe whose `batch_size` is changed.
        accumulate: Batches whose gradients one optimizer step adds up.
        clip: Largest norm of the gradients, at least 0.0001; not clipped if left out.
        seed: Of weights, order, augmentation and dropout.
        devices: Number of processes on each machine.
        num_nodes: Number of machines.
        strategy: `ddp` copies the model to each process, `fsdp` shards it.
        accelerator: `auto`, `cpu`, `gpu` or another that Fabric knows.
        precision: Number format, as Fabric names it.
        compile: Whether the network is compiled; its blocks, each by itself, if it cannot be as a whole.
        activation_checkpointing: Whether blocks are computed again in the backward pass, which takes time and
            saves memory.
        process_timeout: Seconds that a process waits for the others before it gives up.
        workers: Processes that load images; by itself none for images in memory, else one a core, up to 8.
        on_nonfinite: Whether a loss that is not finite stops the run or its step is skipped.
        save_every: Optimizer steps between checkpoints within an epoch; only at its end if left out.
        save_sharded: Whether each process writes its part of a checkpoint, with strategy `fsdp`; the first
            one all of it if left out.
        logger: What takes the values of every step: `tensorboard`, `csv`, `wandb`, `mlflow`, several with
            commas between, or `none`; `metrics.csv` and `metrics.jsonl` are always written.
        profile: Batches that torch.profiler records, near the start.
    """

    # whether images must have labels
    needs_labels: ClassVar[bool] = True

    model: Mapping[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    epochs: int = 100
    batch_size: int = 64
    min_steps_per_epoch: int | None = None
    accumulate: int = 1
    clip: float | None = 1.0
    seed: int = 0
    devices: int = 1
    num_nodes: int = 1
    strategy: StrategyName = "auto"
    accelerator: str = "auto"
    precision: Precision = "32-true"
    compile: bool = False
    activation_checkpointing: bool = False
    process_timeout: float = 600.0
    workers: int | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    save_every: int | None = None
    save_sharded: bool = False
    logger: str = "tensorboard"
    profile: int = 0

    def __post_init__(self) -> None:
        for name, value in _numbers(asdict(self)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        least = {"epochs": 1, "batch_size": 1, "min_steps_per_epoch": 1, "accumulate": 1, "save_every": 1}
        least |= {"devices": 1, "num_nodes": 1, "profile": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        if self.workers is not None:
            check_workers(self.workers)
        for name, seed in {"seed": self.seed, "data.split_seed": self.split_seed}.items():
            if not 0 <= seed < 2**32:
                raise ValueError(f"{name} must be in [0, {2**32 - 1}], got {seed}")
        if self.batch_size % (self.processes * self.accumulate):
            parts = self.processes * self.accumulate
            raise ValueError(
                f"devices x accumulate x num_nodes = {self.devices} x {self.accumulate} x {self.num_nodes} "
                f"must divide batch_size = {self.batch_size}; a batch_size of "
                f"{parts * -(-self.batch_size // parts)} would do"
            )
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs must not exceed epochs = {self.epochs}, "
                f"got {self.schedule.warmup_epochs}"
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr must not exceed optimizer.lr = {self.optimizer.lr}, "
                f"got {self.schedule.min_lr}"
            )
        timeouts = {"process_timeout": self.process_timeout, "data.worker_timeout": self.data.worker_timeout}
        for name, positive in timeouts.items():
            if positive <= 0:
                raise ValueError(f"{name} must be positive, got {positive}")
        if self.clip is not None and self.clip < 1e-4:
            raise ValueError(f"clip must be at least 0.0001, or null for no clipping, got {self.clip}")
        if self.save_sharded and self.strategy != "fsdp":
            raise ValueError(
                f"save_sharded needs strategy 'fsdp', which shards the weights; got {self.strategy!r}"
            )

    @property
    def processes(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.num_nodes

    @property
    def device_batch_size(self) -> int:
        """Images that one process takes at once."""
        return self.batch_size // (self.processes * self.accumulate)

    def with_batches_for(self: ConfigT, images: int) -> ConfigT:
        """Return the configuration with the batch size that `min_steps_per_epoch` chooses, and fix it.

        Args:
            images: number of training images
        """
        if self.min_steps_per_epoch is None:
            return self
        size, parts = self.batch_size, self.processes * self.accumulate
        while (
            images < self.min_steps_per_epoch * size and size >= 2 * LEAST_BATCH and size % (2 * parts) == 0
        ):
            size //= 2
        return replace(self, batch_size=size, min_steps_per_epoch=None)

    @property
    def split_seed(self) -> int:
        """What chooses the images held out."""
        return self.seed if self.data.split_seed is None else self.data.split_seed


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """What defines a supervised training.

    Args:
        task: What is learned of an image: its class (`classify`), several labels (`multilabel`) or values
            (`regression`). The last two are learned from tables (`csv:`).
        loss: Which loss is trained.
        class_weights: `balanced` weighs the loss so that classes of few images count as much as others. Of
            several labels those that are present count as much as those that are absent.
        sampler: `balanced` draws training images, with repetition, so that classes are shown equally often.
        tuning: What the run starts from, and which weights learn.
        distillation: The teacher that the run learns from, if any.
        label_smoothing: Share of a class's probability that is spread over all classes, in [0, 0.9].
        ema: Decay of a moving average of the weights, which is then what is validated and kept.
        select: Which weights are kept: those of the epoch with the best validation `accuracy`, of equal ones
            that with the least loss; or with the least `loss`, smoothed as in training. Of several labels by
            `map` (mean average precision), `f1` or `loss`, of values by `loss` or `mae`; the first of them if
            left out.
        patience: Epochs in a row without better weights after which training ends; all epochs if left out.
    """

    task: TaskName = "classify"
    loss: LossConfig = field(default_factory=LossConfig)
    class_weights: Literal["balanced"] | None = None
    sampler: Literal["balanced"] | None = None
    tuning: TuningConfig = field(default_factory=TuningConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    label_smoothing: float = 0.0
    ema: float | None = None
    select: Literal["accuracy", "map", "f1", "mae", "loss"] | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing <= 0.9:
            raise ValueError(f"label_smoothing must be in [0, 0.9], got {self.label_smoothing}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be in (0, 1), got {self.ema}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        self.loss.check(self.task)
        selections = SELECTIONS[self.task]
        if self.select is not None and self.select not in selections:
            known = " or ".join(selections)
            raise ValueError(f"select of task {self.task} must be {known}, got {self.select}")
        loss = self.loss.chosen(self.task)
        if self.class_weights is not None and loss not in WEIGHTED:
            raise ValueError(f"class_weights are of the losses {', '.join(WEIGHTED)}, got them with {loss}")
        of_classes = {
            "label_smoothing": self.label_smoothing,
            "sampler": self.sampler,
        }
        given = [name for name, value in of_classes.items() if value]
        if self.task != "classify" and given:
            raise ValueError(f"{' and '.join(given)}: for task classify only, got task {self.task}")
        if self.distillation.teacher is None:
            return
        if self.task == "regression" and not self.distillation.hard:
            raise ValueError(
                "distillation.hard must be true for values, of which a teacher has no distribution"
            )
        if self.task == "classify" and (self.class_weights or self.loss.name == "focal"):
            raise ValueError(
                "a teacher is learned with plain cross entropy: leave loss and class_weights out"
            )

    @property
    def selected_by(self) -> str:
        """By what the best weights are chosen."""
        return self.select or next(iter(SELECTIONS[self.task]))


def config_text(config: RunConfig) -> str:
    """Return a configuration as YAML that the command's `--config` reads back as it is, in any folder."""
    settings = _plain(asdict(config))
    data = settings["data"]
    data["source"] = absolute_source(config.data.source)
    # of classes it may be their number
    for name in ("val", "image_root", *(["classes"] if not str(data["classes"]).isdecimal() else [])):
        if data[name] is not None:
            data[name] = str(Path(data[name]).expanduser().absolute())
    for section, key in ((settings, "weights"), *((settings.get(part, {}), name) for part, name in STARTS)):
        start = section.get(key)
        if start not in (None, PUBLISHED) and Path(start).exists():
            section[key] = str(Path(start).absolute())
    return yaml.safe_dump(settings, sort_keys=False, explicit_end=True)


def plain_settings(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as `config_text` has it, in plain values."""
    settings: dict[str, Any] = yaml.safe_load(config_text(config))
    return settings


def write_config(config: RunConfig, path: Path) -> None:
    """Write what `config_text` returns."""
    write_file(path, config_text(config))


def check_resumable(config: RunConfig, path: Path, settings: Mapping[str, Any] | None) -> None:
    """Check that a run may go on with a configuration: it differs only in what acts from there on.

    Args:
        config: with what to go on
        path: the configuration of the run, which somebody may have edited
        settings: the one that its checkpoint was written with; None for checkpoints of earlier versions, in
            place of which the file counts

    Raises:
        ValueError: if another setting differs; names those that do, and those that may
    """
    saved = dict(settings or yaml.safe_load(path.read_text(encoding="utf-8")))
    saved["model"] = find_entry(saved["model"]["name"]).upgrade(saved["model"])
    # without a record of the images nothing else tells whether they are the same
    recorded = (path.parent / RECORD).exists()
    may_differ = [name for name in RESUMABLE if recorded or name != "data.source"]
    changed = [
        f"{name} was {old!r}, got {new!r}"
        for name, old, new in _differences(_plain(saved), plain_settings(config))
        if not any(name == kept or name.startswith(f"{kept}.") for kept in may_differ)
    ]
    if changed:
        raise ValueError(
            f"a run goes on as it began: {'; '.join(changed)}. What may be changed when it is resumed is "
            f"{', '.join(may_differ)}; for anything else start a new run"
        )


def _numbers(settings: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Name the numbers among settings."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _numbers(value, name)
    elif isinstance(settings, float):
        yield name, settings


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name the settings that two configurations both have and that differ, with both values."""
    for key in (key for key in old if key in new):
        below, values = f"{name}{key}", (old[key], new[key])
        # options of a model are one value each
        if all(isinstance(value, dict) for value in values) and name != "model.":
            yield from _differences(*values, f"{below}.")
        elif values[0] != values[1]:
            yield below, *values


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, tuple | list) else value
