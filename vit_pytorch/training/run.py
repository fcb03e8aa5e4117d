"""A run: from a configuration to a folder with everything that came of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.loggers import Logger

import vit_pytorch
from vit_pytorch.base import VisionModel
from vit_pytorch.create import MODEL
from vit_pytorch.distill import DISTILLABLE
from vit_pytorch.memory_vit import MemoryViT
from vit_pytorch.pretrained.source import PREPARE
from vit_pytorch.registry import find_entry
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.checkpoints import Checkpoint, checkpoint_weights
from vit_pytorch.training.config import CONFIG, RunConfig, TrainConfig, write_config
from vit_pytorch.training.data import (
    ImageData,
    ImageRecord,
    Preprocessing,
    Splits,
    find_duplicates,
    open_data,
    read_record,
    record_images,
)
from vit_pytorch.training.data.record import RECORD
from vit_pytorch.training.distillation import DistilledClassifier, make_teacher
from vit_pytorch.training.engine import is_first_process, make_fabric
from vit_pytorch.training.evaluation import Evaluation, evaluate
from vit_pytorch.training.history import METRICS, History, read_rows
from vit_pytorch.training.keeper import Checkpoints
from vit_pytorch.training.loggers import logger_names, make_loggers
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.pictures import draw_confusion, draw_curves, draw_wrong
from vit_pytorch.training.progress import Profiler, Progress
from vit_pytorch.training.resume import fit
from vit_pytorch.training.runs import (
    CHECKPOINTS,
    check_writable,
    find_checkpoint,
    new_run_folder,
    prepare_run_folder,
)
from vit_pytorch.training.saved import SavedClassifier, save_classifier
from vit_pytorch.training.summary import SUMMARY, summarize, write_summary
from vit_pytorch.training.task import Classifier, Task
from vit_pytorch.training.tuning import arrange, load_start, settle

# what was learned in addition to a frozen base, without the base
ADAPTER = "adapter"


def run(config: TrainConfig, folder: Path, *, numbered: bool = False, resume: bool = False) -> None:
    """Train, then measure the best weights on the test split and write the report.

    The weights of the epoch with the least `val/objective` are kept. The test split decides nothing.

    Args:
        config: what to train, on what, and how
        folder: the run's folder
        numbered: whether to add the first free number to the folder's name
        resume: whether to go on with the run in the folder, from its latest checkpoint

    Raises:
        FileExistsError: if the folder holds anything already
        FileNotFoundError: if there is nothing to resume from
        OSError: if the folder cannot be written
        SystemExit: after SIGTERM or Ctrl-C, when a checkpoint is written
    """
    fabric, checkpoint, splits = prepare(config, folder, numbered=numbered, resume=resume)
    model = build_model(config, splits)
    if checkpoint is None and config.tuning.weights is not None:
        load_start(model, config.tuning.weights, config.model["name"])
        config = with_preprocessing_of(model, config)
    model = arrange(model, config.tuning)
    data = image_data(config, splits, model)
    task = make_task(config, model, data.preprocessing, splits)
    folder = create_run_dir(fabric, folder, numbered=numbered, resume=checkpoint is not None)
    log_run(fabric, config, folder, splits, model)
    train(fabric, config, task, data, folder, checkpoint, monitor="val/objective", ema=config.ema)
    if fabric.is_global_zero:
        report(config, folder, splits, skipped=data.bad)


def prepare(
    config: RunConfig, folder: Path, *, numbered: bool, resume: bool
) -> tuple[Fabric, Checkpoint | None, Splits]:
    """Build the engine, find the checkpoint to resume from, open the data, seed the generators; see `run`."""
    _quieten()
    logger_names(config.logger)
    fabric = make_fabric(
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        accelerator=config.accelerator,
        precision=config.precision,
    )
    checkpoint = find_checkpoint(folder) if resume else None
    if checkpoint is not None and (folder / SUMMARY).exists():
        done = checkpoint.epoch + 1
        if done >= config.epochs:
            raise ValueError(f"nothing to resume: {folder} has finished its {done} epochs")
    check_writable(folder.parent if numbered else folder)
    if is_first_process():
        engine = f"torch {torch.__version__}, {fabric.device.type} x {config.processes}, {config.precision}"
        print(f"vit    {vit_pytorch.__version__}, {engine}; reading {config.data.source}", flush=True)
    splits = open_splits(config, _recorded(config, folder) if checkpoint is not None else None)
    seed_everything(config.seed, verbose=False)
    return fabric, checkpoint, splits


def create_run_dir(fabric: Fabric, folder: Path, *, numbered: bool, resume: bool) -> Path:
    """Start the processes, and let the first one take the run's folder.

    Raises:
        OSError: if the folder cannot be taken; the other processes leave
    """
    fabric.launch()
    taken: Path | OSError | None = None
    if fabric.is_global_zero:
        try:
            if resume:
                taken = folder.absolute()
            else:
                taken = new_run_folder(folder.parent, folder.name) if numbered else prepare_run_folder(folder)
        except OSError as error:
            taken = error
    # without an answer the others would wait for the first process, which has left
    taken = fabric.broadcast(taken)
    if isinstance(taken, Path):
        return taken
    assert taken is not None
    raise taken if fabric.is_global_zero else SystemExit(0)


def log_run(fabric: Fabric, config: RunConfig, folder: Path, splits: Splits, model: VisionModel) -> None:
    """Let the first process say what will be done, and write it down."""
    if not fabric.is_global_zero:
        return
    write_config(config, folder / CONFIG)
    if not (folder / CHECKPOINTS).exists():
        record = record_images(splits, config.data.source)
        record.write(folder / RECORD)
        if twins := str(find_duplicates(record)):
            print(f"data   {twins}")
    sizes = f"{len(splits.train)} to train, {len(splits.val)} to validate"
    if splits.test is not None:
        sizes += f", {len(splits.test)} to test"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"data   {config.data.source}: {len(splits.classes)} classes, {splits.train.kind}s: {sizes}")
    size = " x ".join(map(str, model.image_size))
    print(f"model  {config.model['name']}: {parameters:,} parameters, input {size}")
    print(f"run    {folder}", flush=True)


def train(
    fabric: Fabric,
    config: RunConfig,
    task: Task,
    data: ImageData,
    folder: Path,
    checkpoint: Checkpoint | None,
    *,
    monitor: str | None,
    ema: float | None = None,
    watching: Callable[[Sequence[Logger]], Sequence[Callback]] | None = None,
) -> None:
    """Train as a configuration says, with what every run writes down.

    Args:
        fabric: the engine, launched
        config: how to train
        task: what is trained
        data: on what
        folder: the run's folder
        checkpoint: what to go on from; None for a new training
        monitor: see `Checkpoints`
        ema: see `Loop`
        watching: gives more callbacks, from the run's loggers; they add to what is measured
    """
    loggers = make_loggers(config.logger, folder) if fabric.is_global_zero else []
    steps = len(data.opened.train) // config.batch_size
    history = History(folder, loggers=loggers, every=max(1, min(50, steps)))
    callbacks = [*(watching(loggers) if watching is not None else ()), history, Progress(history)]
    if config.profile:
        callbacks.append(Profiler(folder, config.profile))
    loop = Loop(
        fabric,
        task,
        data,
        checkpoints=Checkpoints(folder / CHECKPOINTS, monitor=monitor, every_n_steps=config.save_every),
        epochs=config.epochs,
        accumulate=config.accumulate,
        clip=config.clip,
        ema=ema,
        on_nonfinite=config.on_nonfinite,
        compiled=config.compile,
        callbacks=callbacks,
    )
    fit(loop, checkpoint)


def report(config: TrainConfig, folder: Path, splits: Splits, *, skipped: Mapping[str, str]) -> None:
    """Measure a run's best weights and write the model, the pictures and the summary.

    Args:
        config: What was trained, on what, and how.
        folder: The run's folder.
        splits: The images.
        skipped: Images that training had to leave out, with the reason.
    """
    best = find_checkpoint(folder, "best")
    model = arrange(build_model(config, splits), config.tuning)
    model.load_state_dict(checkpoint_weights(best))
    settle(model, config.tuning)
    data = image_data(config, splits, model)
    model.to(eval_device(config)).eval()
    classes, prep = splits.classes, data.preprocessing
    results: dict[str, Evaluation] = {"val": evaluate(model, [data.val_dataloader()], classes, prep)}
    if splits.test is not None:
        results["test"] = evaluate(model, [data.test_dataloader()], classes, prep)
    final = results.get("test", results["val"])
    save_classifier(SavedClassifier(model.cpu(), classes, prep), folder / MODEL)
    if isinstance(model, MemoryViT):
        model.adapter.save_pretrained(folder / ADAPTER)
    rows = read_rows(folder / METRICS)
    draw_curves(rows, folder / "curves.png")
    draw_confusion(final.confusion, classes, folder / "confusion.png")
    draw_wrong(final.wrong, classes, folder / "wrong.png")
    summary = summarize(
        config,
        model,
        results,
        rows,
        best=best.path.name,
        sizes=data.sizes,
        skipped={**skipped, **data.bad},
        kind=splits.train.kind,
    )
    write_summary(summary, folder)
    print((folder / "summary.md").read_text(encoding="utf-8"))
    print(f"all of it is in {folder}")


def _recorded(config: RunConfig, folder: Path) -> ImageRecord | None:
    """Read what images a run began with, which decides its splits.

    Raises:
        ValueError: if the configuration asks for other splits
    """
    if not (folder / RECORD).exists():
        print(f"data   {folder} has no {RECORD}: whether its images have changed is not known", flush=True)
        return None
    saved = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("val_fraction", "test_fraction", "split_seed"):
        if saved["data"][name] != getattr(config.data, name):
            raise ValueError(
                f"data.{name} was {saved['data'][name]} when the run began, got "
                f"{getattr(config.data, name)}: a run that is resumed keeps its splits"
            )
    return read_record(folder / RECORD)


def open_splits(config: RunConfig, record: ImageRecord | None = None) -> Splits:
    """Open a configuration's data, in the splits that a run has recorded."""
    return open_data(
        config.data.source,
        seed=config.split_seed,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        record=record,
        changed=config.data.changed,
    )


def build_model(config: TrainConfig, splits: Splits) -> VisionModel:
    """Build a configuration's model, for the classes and channels of its data."""
    arguments, channels = model_arguments(config, splits)
    entry = find_entry(config.model["name"])
    if config.distillation.teacher is not None and entry.architecture in DISTILLABLE:
        entry = replace(entry, architecture=DISTILLABLE[entry.architecture])
    return entry.build(**arguments, num_classes=len(splits.classes), channels=channels)


def model_arguments(config: RunConfig, splits: Splits) -> tuple[dict[str, Any], int]:
    """Return the arguments of a configuration's model, and the channels that it shall take."""
    arguments = {key: value for key, value in config.model.items() if key != "name"}
    return arguments, splits.train.channels if config.data.channels is None else config.data.channels


def with_preprocessing_of(model: VisionModel, config: TrainConfig) -> TrainConfig:
    """Write down how a model's weights want images prepared, where the configuration leaves it to them."""
    told = {name: getattr(config.data, name) for name in PREPARE}
    wanted = {name: model.default_cfg[name] for name, value in told.items() if value is None}
    return replace(config, data=replace(config.data, **wanted))


def make_task(
    config: TrainConfig, model: VisionModel, preprocessing: Preprocessing, splits: Splits
) -> Classifier:
    """Build what trains the model: from labels, and from a teacher if a configuration names one."""
    settings: dict[str, Any] = {
        "optimizer": config.optimizer,
        "schedule": config.schedule,
        "label_smoothing": config.label_smoothing,
    }
    if config.distillation.teacher is None:
        return Classifier(model, **settings)
    teacher = make_teacher(config.distillation, splits, preprocessing)
    return DistilledClassifier(model, teacher, distillation=config.distillation, **settings)


def image_data(config: RunConfig, splits: Splits, model: VisionModel) -> ImageData:
    """Prepare the data as a configuration says, or as the model wants it where that says nothing.

    Raises:
        ValueError: Where the data are images and the model takes videos or volumes, or the other way round;
            where images shall differ in size, and the model takes those of one size.
    """
    cfg, data = model.default_cfg, config.data
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
    return ImageData(
        splits,
        image_size=(height, width),
        channels=model.channels,
        batch_size=config.device_batch_size,
        workers=config.loading_processes,
        augmentation=config.augmentation,
        mean=cfg["mean"] if data.mean is None else data.mean,
        std=cfg["std"] if data.std is None else data.std,
        interpolation=cfg["interpolation"] if data.interpolation is None else data.interpolation,
        crop_pct=cfg["crop_pct"] if data.crop_pct is None else data.crop_pct,
        crop_mode=cfg["crop_mode"] if data.crop_mode is None else data.crop_mode,
        max_tokens=data.max_tokens,
        patch_size=(patch[0], patch[1]),
        frames=model.image_size[0] if splits.train.axes == 3 else None,
        video=data.video,
        volume=data.volume,
        seed=config.seed,
        worker_timeout=data.worker_timeout,
        on_bad=data.on_bad,
        window=data.window,
    )


def eval_device(config: RunConfig) -> torch.device:
    """Return where a run's results are measured: on a GPU where there is one and the run may take it."""
    usable = torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if usable else "cpu")


def _quieten() -> None:
    """Leave out what Lightning says about itself; warnings stay, but for one without use here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # about 1 x 1 convolutions on channels-last images, whose gradients have strides of their own for the same
    # order in memory
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
