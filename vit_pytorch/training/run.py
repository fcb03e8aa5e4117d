"""A run: from a configuration to a folder with everything that came of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import Logger

from vit_pytorch.base import VisionModel
from vit_pytorch.create import MODEL
from vit_pytorch.data import (
    ImageData,
    Preprocessing,
    Splits,
    find_duplicates,
    find_equal_pixels,
    record_images,
)
from vit_pytorch.data.record import RECORD, check_unchanged
from vit_pytorch.data.sizes import typical_size
from vit_pytorch.distill import DISTILLABLE
from vit_pytorch.memory_vit import MemoryViT
from vit_pytorch.preprocessing import VideoConfig, VolumeConfig, preprocessing_for
from vit_pytorch.pretrained.source import PREPARE
from vit_pytorch.registry import find_entry
from vit_pytorch.storage import replacing, write_file
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.card import CARD, card_text
from vit_pytorch.training.checkpoints import Checkpoint, checkpoint_weights
from vit_pytorch.training.config import CONFIG, RunConfig, TrainConfig, plain_settings, write_config
from vit_pytorch.training.distillation import DistilledClassifier, DistilledSupervised, make_teacher
from vit_pytorch.training.engine import process_states
from vit_pytorch.training.evaluation import evaluate, fit_problem
from vit_pytorch.training.history import METRICS, History, read_rows
from vit_pytorch.training.keeper import Checkpoints
from vit_pytorch.training.loggers import make_loggers
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.losses import SELECTIONS, balanced_weights, make_loss
from vit_pytorch.training.peers import lost_processes_named
from vit_pytorch.training.pictures import pictures_of
from vit_pytorch.training.problems import PROBLEMS, MultiLabel, Problem, Regression, problem_of
from vit_pytorch.training.progress import Profiler, Progress
from vit_pytorch.training.resume import fit
from vit_pytorch.training.runs import CHECKPOINTS, find_checkpoint
from vit_pytorch.training.saved import SavedClassifier, save_classifier
from vit_pytorch.training.start import create_run_dir, prepare, recorded_images
from vit_pytorch.training.summary import describe_run, publish, render
from vit_pytorch.training.task import Classifier, Supervised, Task
from vit_pytorch.training.tuning import arrange, check_installed, load_start, settle

# what was learned in addition to a frozen base, without the base
ADAPTER = "adapter"


def run(config: TrainConfig, folder: Path, *, numbered: bool = False, resume: bool = False) -> Path:
    """Train, then measure the best weights on the test split and write the report.

    The weights of the epoch that is best in validation are kept (see `TrainConfig.select`). The test split
    decides nothing.

    Args:
        config: what to train, on what, and how
        folder: the run's folder
        numbered: whether to add the first free number to the folder's name
        resume: whether to go on with the run in the folder, from its latest checkpoint

    Returns:
        The run's folder, absolute.

    Raises:
        BlockingIOError: if another process trains in the folder
        FileExistsError: if the folder holds anything already
        FileNotFoundError: if there is nothing to resume from
        OSError: if the folder cannot be written
        SystemExit: after SIGTERM, SIGHUP or Ctrl-C, when a checkpoint is written
        ValueError: if a run that is resumed is not to go on as it began (see `check_resumable`), or a package
            is not installed
    """
    # before weights are fetched
    check_installed(config.tuning.method)
    with ExitStack() as held:
        fabric, checkpoint, splits = prepare(config, folder, held, numbered=numbered, resume=resume)
        asked, config = config.batch_size, config.with_batches_for(len(splits.train))
        problem = problem_of(splits, recorded_images(folder) if checkpoint is not None else None)
        check_selectable(config, splits)
        model = build_model(config, splits)
        if checkpoint is None and config.tuning.weights is not None:
            load_start(model, config.tuning.weights, config.model["name"])
            config = with_preprocessing_of(model, config)
        model = arrange(model, config.tuning)
        data = image_data(config, splits, model)
        task = make_task(config, model, problem, data.preprocessing, splits)
        folder = create_run_dir(fabric, folder, held, numbered=numbered, resume=resume)
        log_run(fabric, config, folder, splits, model, asked)
        if fabric.is_global_zero:
            warn_of_imbalance(config, splits)
        train(
            fabric,
            config,
            task,
            data,
            folder,
            checkpoint,
            best=SELECTIONS[config.task][config.selected_by],
            patience=config.patience,
            ema=config.ema,
        )
        skipped = all_skipped(fabric, data)
        if fabric.is_global_zero:
            report(config, folder, splits, skipped=skipped)
    return folder


class Settings(Callback):
    """Writes down what a run is, when nothing can refuse it any more.

    Args:
        config: how the run goes on
        folder: the run's folder
        splits: the images of a new run, which are recorded; None for one that is resumed
    """

    def __init__(self, config: RunConfig, folder: Path, splits: Splits | None) -> None:
        self.config, self.folder, self.splits = config, folder, splits

    def on_train_start(self, loop: Loop) -> None:
        """Write the record of the images, then the configuration, without which the run has not begun."""
        if not loop.fabric.is_global_zero:
            return
        if self.splits is not None and self.splits.train.listed:
            record = record_images(self.splits, self.config.data.source)
            record.write(self.folder / RECORD)
            equal = find_equal_pixels(record, self.splits)
            if equal is None:
                print(
                    "data   too many images to compare their pixels: of duplicates only equal files are named"
                )
            if twins := str(find_duplicates(record, equal)):
                print(f"data   {twins}", flush=True)
        write_config(self.config, self.folder / CONFIG)


def log_run(
    fabric: Fabric, config: RunConfig, folder: Path, splits: Splits, model: VisionModel, asked: int
) -> None:
    """Print what will be done, in the first process.

    Args:
        asked: the batch size before it was fitted to the number of images
    """
    if not fabric.is_global_zero:
        return
    sizes = f"{len(splits.train)} to train, {len(splits.val)} to validate"
    if splits.test is not None:
        sizes += f", {len(splits.test)} to test"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    names = f"{len(splits.classes)} {PROBLEMS[splits.task].plural}" if splits.classes else "no labels"
    print(f"data   {config.data.source}: {names}, {splits.train.kind}s: {sizes}")
    if not splits.train.listed:
        print(f"data   {splits.train}")
    if splits.unlabelled:
        print(f"data   features are not probed by labels: {splits.unlabelled}")
    size = " x ".join(map(str, model.image_size))
    print(f"model  {config.model['name']}: {parameters:,} parameters, input {size}")
    own = typical_size(splits.train) if config.data.max_tokens is None and splits.train.axes == 2 else None
    if own is not None and own != tuple(model.image_size):
        print(f"data   images of about {own[0]} x {own[1]}: the model sees them at {size} (--img_size)")
    lr, least, warmup = config.optimizer.lr, config.schedule.min_lr, config.schedule.warmup_epochs
    steps, otherwise = (max(1, len(splits.train) // size) for size in (config.batch_size, asked))
    why = f" (of {asked} it would be {otherwise}: --batch_size decides)" if asked != config.batch_size else ""
    print(
        f"plan   {config.epochs} epochs of {steps} steps in batches of {config.batch_size}{why}, lr up to "
        f"{lr:g} in the first {warmup:g} epochs, {least:g} at the end"
    )
    print(f"run    {folder}", flush=True)


def warn_of_imbalance(config: TrainConfig, splits: Splits) -> None:
    """Warn where a class has less than a tenth of another's training images, or is balanced twice."""
    if config.class_weights and config.sampler:
        warnings.warn(
            "--class_weights balanced and --sampler balanced each make classes count equally: with both, "
            "rare ones count for more",
            stacklevel=2,
        )
    if config.class_weights or config.sampler or splits.task != "classify" or not splits.train.listed:
        return
    counts = torch.bincount(splits.train.labels, minlength=len(splits.classes))
    few, many = int(counts.argmin()), int(counts.argmax())
    if 10 * counts[few] < counts[many]:
        warnings.warn(
            f"class {splits.classes[few]!r} has {int(counts[few])} training {splits.train.kind}s, "
            f"{splits.classes[many]!r} has {int(counts[many])}: look at balanced accuracy and macro F1; "
            "--class_weights balanced, --sampler balanced or --loss focal may help",
            stacklevel=2,
        )


def train(
    fabric: Fabric,
    config: RunConfig,
    task: Task,
    data: ImageData,
    folder: Path,
    checkpoint: Checkpoint | None,
    *,
    best: Mapping[str, Any],
    watching: Callable[[Sequence[Logger]], Sequence[Callback]] | None = None,
    **options: Any,
) -> None:
    """Train as a configuration says, with what every run writes down.

    Args:
        fabric: the engine, launched
        config: how to train
        task: what is trained
        data: on what
        folder: the run's folder
        checkpoint: what to go on from; None for a new training
        best: arguments of `Checkpoints` that say which checkpoint is best
        watching: gives more callbacks, from the run's loggers; they add to what is measured
        options: more arguments of `Loop`
    """
    loggers = make_loggers(config.logger, folder) if fabric.is_global_zero else []
    steps = len(data.opened.train) // config.batch_size
    history = History(folder, loggers=loggers, every=max(1, min(50, steps)))
    settings = Settings(config, folder, data.opened if checkpoint is None else None)
    watched = watching(loggers) if watching is not None else ()
    callbacks = [settings, *watched, history, Progress(history)]
    if config.profile:
        callbacks.append(Profiler(folder, config.profile))
    with lost_processes_named(fabric, folder / CHECKPOINTS):
        loop = Loop(
            fabric,
            task,
            data,
            checkpoints=Checkpoints(
                folder / CHECKPOINTS,
                every_n_steps=config.save_every,
                sharded=config.save_sharded,
                settings=plain_settings(config),
                **best,
            ),
            epochs=config.epochs,
            accumulate=config.accumulate,
            clip=config.clip,
            on_nonfinite=config.on_nonfinite,
            compiled=config.compile,
            activation_checkpointing=config.activation_checkpointing,
            callbacks=callbacks,
            **options,
        )
        if checkpoint is None and config.data.on_bad == "stop":
            data.check_evaluation()
        fit(loop, checkpoint)
    if loop.epoch < loop.epochs and fabric.is_global_zero:
        waited = loop.checkpoints.since_best
        print(
            f"stopped after epoch {loop.epoch} of {loop.epochs}: the last {waited} were no better", flush=True
        )


def check_selectable(config: TrainConfig, splits: Splits) -> None:
    """Check that the validation images tell which weights are the best.

    Raises:
        ValueError: They have none of the labels, by which these are chosen.
    """
    by = config.selected_by
    if config.task == "multilabel" and by != "loss" and not (splits.val.labels == 1).any():
        raise ValueError(
            f"the best weights are chosen by {by} on the validation images, but none of these "
            f"{len(splits.val)} has a label: put images with labels there, or choose by the loss (--select "
            "loss)"
        )


def all_skipped(fabric: Fabric, data: ImageData) -> dict[str, str]:
    """Return the images that training has skipped in any of its processes, with the reasons."""
    return {name: reason for bad in process_states(fabric, data.bad) for name, reason in bad.items()}


def report(config: TrainConfig, folder: Path, splits: Splits, *, skipped: Mapping[str, str]) -> None:
    """Measure a run's best weights and write the model, the pictures and the summary.

    Args:
        config: What was trained, on what, and how.
        folder: The run's folder.
        splits: The images.
        skipped: Images that training had to leave out, with the reason.
    """
    best = find_checkpoint(folder, "best")
    with built_before():
        model = arrange(build_model(config, splits), config.tuning)
    model.load_state_dict(checkpoint_weights(best))
    settle(model, config.tuning)
    data = image_data(config, splits, model)
    data.bad.update(skipped)
    record = recorded_images(folder)
    problem, prep = problem_of(splits, record), data.preprocessing

    def save() -> None:
        with replacing(folder / MODEL) as place:
            save_classifier(SavedClassifier(model, problem, prep), place)

    # first, so that nothing that fails below costs the model
    save()
    if isinstance(model, MemoryViT):
        with replacing(folder / ADAPTER) as place:
            model.adapter.save_pretrained(place)
    model.to(eval_device(config)).eval()
    problem, unfitted = fit_problem(model, [data.val_dataloader()], problem), problem
    if problem != unfitted:
        save()
    loaders = {"val": data.val_dataloader()}
    if splits.test is not None:
        loaders["test"] = data.test_dataloader()
    results = {split: evaluate(model, [loader], problem, prep) for split, loader in loaders.items()}
    if record is not None:
        check_unchanged(record, {split: getattr(splits, split) for split in results}, config.data.source)
    rows = read_rows(folder / METRICS)
    pictures = pictures_of(results.get("test", results["val"]), rows)
    summary = {
        **describe_run(config, model, rows, sizes=data.sizes, skipped=data.bad),
        "task": config.task,
        "kind": splits.train.kind,
        "best_checkpoint": best.path.name,
        "selected_by": config.selected_by,
        "pictures": list(pictures),
        **{split: result.as_dict() for split, result in results.items()},
    }
    write_file(folder / MODEL / CARD, card_text(config, problem, prep, summary, results))
    publish(summary, render(summary, results), pictures, folder)


@contextmanager
def built_before() -> Iterator[None]:
    """Context manager: a model is built a second time, of which nothing is warned again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def build_model(config: RunConfig, splits: Splits) -> VisionModel:
    """Build a configuration's model for the channels of its data, and for their classes if it learns them."""
    entry = find_entry(config.model["name"])
    teacher = config.distillation.teacher if isinstance(config, TrainConfig) else None
    if teacher is not None and entry.architecture in DISTILLABLE:
        entry = replace(entry, architecture=DISTILLABLE[entry.architecture])
    arguments = {key: value for key, value in config.model.items() if key != "name"}
    return entry.build(
        **arguments,
        num_classes=len(splits.classes) if isinstance(config, TrainConfig) else 0,
        channels=splits.train.channels if config.data.channels is None else config.data.channels,
    )


# sections of the data that say nothing
USUAL = {"video": VideoConfig(), "volume": VolumeConfig()}


def with_preprocessing_of(model: VisionModel, config: TrainConfig) -> TrainConfig:
    """Write down how a model's weights want images prepared, where the configuration leaves it to them."""
    told = {name: getattr(config.data, name) for name in PREPARE}
    wanted: dict[str, Any] = {
        name: model.default_cfg.get(name) for name, value in told.items() if value is None
    }
    known = preprocessing_for(model)
    wanted |= {name: getattr(known, name) for name, usual in USUAL.items() if told[name] == usual}
    return replace(config, data=replace(config.data, **wanted))


def make_task(
    config: TrainConfig, model: VisionModel, problem: Problem, preprocessing: Preprocessing, splits: Splits
) -> Task:
    """Build what trains the model: from labels, and from a teacher if a configuration names one."""
    settings: dict[str, Any] = {"optimizer": config.optimizer, "schedule": config.schedule}
    weights = None
    if not splits.train.listed and (config.class_weights or config.sampler):
        raise ValueError(
            "class_weights and sampler count the training images of each class, which a stream does not know"
        )
    if config.class_weights is not None:
        weights = balanced_weights(splits.train.labels, len(splits.classes))
    criterion = make_loss(config.loss, config.task, label_smoothing=config.label_smoothing, weights=weights)
    taught: dict[str, Any] = {}
    if config.distillation.teacher is not None:
        teacher = make_teacher(config.distillation, splits, preprocessing)
        taught = {"teacher": teacher, "distillation": config.distillation}
    if isinstance(problem, MultiLabel | Regression):
        kind = DistilledSupervised if taught else Supervised
        return kind(model, problem, criterion=criterion, **taught, **settings)
    settings["label_smoothing"] = config.label_smoothing
    if not taught:
        plain = weights is None and config.loss.chosen(config.task) == "cross_entropy"
        return Classifier(model, criterion=None if plain else criterion, **settings)
    return DistilledClassifier(model, **taught, **settings)


def image_data(config: RunConfig, splits: Splits, model: VisionModel) -> ImageData:
    """Prepare the data as a configuration says, or as the model wants it where that says nothing.

    Raises:
        ValueError: Where the data are images and the model takes videos or volumes, or the other way round;
            where images shall differ in size, and the model takes those of one size.
    """
    cfg, data = model.default_cfg, config.data
    data.check_channels(model.channels)
    if len(model.image_size) != splits.train.axes:
        raise ValueError(
            f"{config.model['name']} takes an input of {' x '.join(map(str, model.image_size))}, "
            f"but {data.source} holds {splits.train.kind}s, which have {splits.train.axes} axes"
        )
    if data.max_tokens is not None and model.native_patch is None:
        raise ValueError(
            "data.max_tokens needs a model that takes images of different sizes, such as "
            f"navit_small_patch16; got {config.model['name']}"
        )
    patch = model.native_patch or Preprocessing.patch_size
    height, width = model.image_size[-2:]
    own = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return ImageData(
        splits,
        image_size=(height, width),
        channels=model.channels,
        batch_size=config.device_batch_size,
        workers=config.workers,
        augmentation=config.augmentation,
        **{name: cfg[name] if (told := getattr(data, name)) is None else told for name in own},
        max_tokens=data.max_tokens,
        patch_size=(patch[0], patch[1]),
        frames=model.image_size[0] if splits.train.axes == 3 else None,
        video=data.video,
        volume=data.volume,
        seed=config.seed,
        worker_timeout=data.worker_timeout,
        on_bad=data.on_bad,
        window=data.window,
        in_memory=data.in_memory,
        balanced=isinstance(config, TrainConfig) and config.sampler == "balanced",
    )


def eval_device(config: RunConfig) -> torch.device:
    """Return where a run's results are measured: on a GPU where there is one and the run may take it."""
    usable = torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if usable else "cpu")
