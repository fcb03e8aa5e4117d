"""A run that learns without labels: from a configuration to a folder with everything that came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger
from torch import nn

from vit_pytorch.base import VisionModel
from vit_pytorch.create import MODEL
from vit_pytorch.data import ImageData, Splits
from vit_pytorch.mae import MAE
from vit_pytorch.pretrained import load_autoencoder, load_pretrained
from vit_pytorch.pretrained.autoencoder import find_format
from vit_pytorch.pretrained.source import open_source
from vit_pytorch.ssl.schedules import CosineSchedule
from vit_pytorch.storage import replacing
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.checkpoints import checkpoint_weights
from vit_pytorch.training.history import METRICS, Row, read_rows
from vit_pytorch.training.pictures import PANELS, draw_curves
from vit_pytorch.training.pretraining.config import DinoConfig, PretrainConfig
from vit_pytorch.training.pretraining.methods import Length, backbone_of, make_method
from vit_pytorch.training.pretraining.monitor import ENTROPY, KNN, SPREAD, USAGE, Monitor
from vit_pytorch.training.pretraining.pictures import Pictures
from vit_pytorch.training.pretraining.task import Pretrainer
from vit_pytorch.training.probing import embed_dataset, measure, spread_over
from vit_pytorch.training.run import (
    all_skipped,
    build_model,
    built_before,
    eval_device,
    image_data,
    log_run,
    train,
)
from vit_pytorch.training.runs import find_checkpoint
from vit_pytorch.training.saved import note_preprocessing
from vit_pytorch.training.start import create_run_dir, prepare
from vit_pytorch.training.summary import COURSE, describe_run, publish, skipped_lines
from vit_pytorch.training.tuning import find_start

CURVES = {**PANELS, "accuracy": (KNN,), "spread": (SPREAD,), "teacher (nats)": (ENTROPY, USAGE)}

# what is said of the weights that are kept
KEPT = {"last": "the last", "knn": "those with the best nearest neighbours in validation"}


def run(config: PretrainConfig, folder: Path, *, numbered: bool = False, resume: bool = False) -> Path:
    """Train without labels, then write the model, what its features are worth, and the report.

    The weights of the last epoch are kept, since a loss without labels does not tell which are best; or those
    whose nearest neighbours are right most often (see `PretrainConfig.select`).

    Args:
        config: What to train, on what, and how.
        folder: The run's folder.
        numbered: Whether to add the first free number to the folder's name.
        resume: Whether to go on with the run in the folder, from its latest checkpoint.

    Returns:
        The run's folder, absolute.

    Raises:
        BlockingIOError: Where another process trains in the folder.
        ValueError: Where the method cannot teach the model, or a run that is resumed is not to go on as it
            began.
        FileExistsError: Where the folder holds anything already.
        FileNotFoundError: Where there is nothing to resume from.
        OSError: Where the folder cannot be written.
        SystemExit: After SIGTERM or Ctrl-C, when a checkpoint is written.
    """
    with ExitStack() as held:
        fabric, checkpoint, splits = prepare(config, folder, held, numbered=numbered, resume=resume)
        asked, config = config.batch_size, config.with_batches_for(len(splits.train))
        model, data, method = build(config, splits, None if checkpoint is not None else config.weights)
        task = make_task(config, method, splits)
        by_knn = config.selects_by_knn(splits)
        watched = replace(config.monitor, knn_every=1) if by_knn else config.monitor
        monitor = Monitor(watched, data)
        folder = create_run_dir(fabric, folder, held, numbered=numbered, resume=resume)
        log_run(fabric, config, folder, splits, model, asked)

        def watching(loggers: Sequence[Logger]) -> list[Callback]:
            return [monitor, Pictures(config.monitor, data, folder, loggers)]

        train(
            fabric,
            config,
            task,
            data,
            folder,
            checkpoint,
            best={"monitor": KNN, "mode": "max", "tie_break": "val/loss"} if by_knn else {"monitor": None},
            from_start=by_knn and config.weights is not None,
            watching=watching,
        )
        skipped = all_skipped(fabric, data)
        if fabric.is_global_zero:
            report(config, folder, splits, monitor, skipped=skipped)
    return folder


def build(
    config: PretrainConfig, splits: Splits, weights: str | None = None
) -> tuple[VisionModel, ImageData, nn.Module]:
    """Build a configuration's model, without classifier, its data, and the method around the model.

    Args:
        config: What to build.
        splits: The images.
        weights: What the model starts from; see `PretrainConfig`.

    Raises:
        ValueError: Where the method cannot teach the model, or the weights do not fit.
        OSError: Where the weights cannot be read.
    """
    model, start = _build_start(config, splits, weights)
    data = image_data(config, splits, model)
    if config.source_size is not None:
        data.train_size = (config.source_size, config.source_size)
    note_preprocessing(model, data.preprocessing)
    method = make_method(
        config.method, model, data.preprocessing, length_of(config, splits), name=config.model["name"]
    )
    stored = start if isinstance(start, str | Path) else None
    if isinstance(method, MAE) and stored is not None and find_format(open_source(stored).state) is not None:
        load_autoencoder(method, stored)
    return model, data, method


def _build_start(config: PretrainConfig, splits: Splits, weights: str | None) -> tuple[VisionModel, Any]:
    """Return a configuration's model, and what `find_start` says of the weights that it starts from."""
    model = build_model(config, splits)
    if weights is None:
        return model, None
    start = find_start(model, weights, config.model["name"])
    load_pretrained(model, start)
    return model, start


def make_task(config: PretrainConfig, method: nn.Module, splits: Splits) -> Pretrainer:
    """Build what trains by a method.

    Raises:
        ValueError: Where the weights that it starts from do not fit.
        OSError: Where they cannot be read.
    """
    decay, start = None, None
    if isinstance(config.method, DinoConfig) and config.method.weight_decay_end is not None:
        ends = config.optimizer.weight_decay, config.method.weight_decay_end
        decay = CosineSchedule(*ends, length_of(config, splits).steps)
    if config.anchor:
        start, _ = _build_start(config, splits, config.weights)
    return Pretrainer(
        method,
        optimizer=config.optimizer,
        schedule=config.schedule,
        weight_decay=decay,
        seed=config.seed,
        anchor=config.anchor,
        start=start,
    )


def length_of(config: PretrainConfig, splits: Splits) -> Length:
    """Count the steps of a configuration's training."""
    return Length.of(
        len(splits.train),
        epochs=config.epochs,
        batch=config.device_batch_size * config.processes,
        accumulate=config.accumulate,
    )


def report(
    config: PretrainConfig,
    folder: Path,
    splits: Splits,
    monitor: Monitor,
    *,
    skipped: Mapping[str, str],
) -> None:
    """Write the model of the weights that are kept, the curves and the summary.

    Args:
        config: What was trained, on what, and how.
        folder: The run's folder.
        splits: The images.
        monitor: What has watched the training.
        skipped: Images that training had to leave out, with the reason.
    """
    selected = "knn" if config.selects_by_knn(splits) else "last"
    kept = find_checkpoint(folder, "best" if selected == "knn" else "last")
    with built_before():
        _, data, method = build(config, splits)
    data.bad.update(skipped)
    method.load_state_dict(checkpoint_weights(kept))
    model = backbone_of(method)
    note_preprocessing(model, data.preprocessing)
    # first, so that nothing that fails below costs the model
    with replacing(folder / MODEL) as place:
        model.save_pretrained(place)
    model.to(eval_device(config)).eval()
    accuracy, neighbours = {}, min(config.monitor.neighbours, config.monitor.knn_images, len(splits.train))
    if splits.classes:
        known = embed_dataset(model, spread_over(splits.train, config.monitor.knn_images), data)
        accuracy = {
            name: measure("knn", known, embed_dataset(model, images, data), neighbours=neighbours)
            for name, images in (("val", splits.val), ("test", splits.test))
            if images is not None
        }
    rows = read_rows(folder / METRICS)
    summary = {
        "method": asdict(config.method),
        **describe_run(config, model, rows, sizes=data.sizes, skipped=data.bad),
        "checkpoint": kept.path.name,
        "selected_by": selected,
        "knn_accuracy": accuracy,
        "neighbours": neighbours,
        "last_epoch": rows[-1],
        "start_knn_accuracy": monitor.start,
        "collapse": list(monitor.alarms),
    }
    publish(summary, render(summary, rows), {COURSE: lambda path: draw_curves(rows, path, CURVES)}, folder)


def render(summary: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Say in Markdown what a run gave."""
    last = rows[-1]
    lines = [f"# {summary['model']} on {summary['data']} by {summary['method']['name']}", ""]
    lines += [f"- **collapse** in epoch {alarm['epoch']}: {alarm['what']}" for alarm in summary["collapse"]]
    if not summary["collapse"]:
        lines.append("- collapse: none seen")
    lines += [
        f"- nearest neighbours on {split}: {value:.2%} of {summary['images'][split]} images"
        for split, value in summary["knn_accuracy"].items()
    ]
    if summary["start_knn_accuracy"] is not None:
        lines.append(
            f"- nearest neighbours on val before the first step: {summary['start_knn_accuracy']:.2%}"
        )
    if not summary["knn_accuracy"]:
        lines.append("- nearest neighbours: not measured, since the images have no labels")
    lines.append(f"- loss: {last['train/loss']:.4f} in training, {last['val/loss']:.4f} in validation")
    if SPREAD in last:
        lines.append(f"- spread of the features: {last[SPREAD]:.3f}")
    if ENTROPY in last:
        lines.append(f"- teacher: mean entropy {last[ENTROPY]:.3f}, of its mean {last[USAGE]:.3f} nats")
    lines += [
        f"- parameters: {summary['parameters']:,}",
        f"- training: {summary['epochs']} epochs, {summary['training_seconds']:.0f} s",
        f"- seed: {summary['seed']}",
        f"- weights: {summary['checkpoint']}, {KEPT[summary['selected_by']]}",
        *skipped_lines(summary),
        "",
    ]
    return "\n".join(lines)
