"""Trained models as folders: weights, configuration, what outputs mean and how images are prepared."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vit_pytorch.base import VisionModel
from vit_pytorch.create import load_model
from vit_pytorch.preprocessing import MEDIA, Preprocessing, preprocessing_for
from vit_pytorch.training.problems import Classification, Problem, read_problem

# where `default_cfg` keeps the task and what belongs to it
TASK = "problem"


@dataclass(frozen=True)
class SavedClassifier:
    """A classifier, or a model of several labels or of values, ready for use.

    Args:
        model: In eval mode.
        problem: What its outputs mean.
        preprocessing: How images are prepared for it.
    """

    model: VisionModel
    problem: Problem
    preprocessing: Preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs: classes, labels or values."""
        return self.problem.names


def save_classifier(saved: SavedClassifier, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`; names, task and preprocessing go to `default_cfg`."""
    note_preprocessing(saved.model, saved.preprocessing)
    saved.model.default_cfg.update(label_names=saved.classes)
    settings = saved.problem.settings()
    if settings or not isinstance(saved.problem, Classification):
        saved.model.default_cfg.update({TASK: {"task": saved.problem.task, **settings}})
    saved.model.save_pretrained(Path(folder))


def note_preprocessing(model: VisionModel, prep: Preprocessing) -> None:
    """Write into a model's configuration how images are prepared for it."""
    model.default_cfg.update(
        input_size=(prep.channels, *prep.size),
        mean=tuple(prep.mean),
        std=tuple(prep.std),
        interpolation=prep.interpolation,
        crop_pct=prep.crop_pct,
        crop_mode=prep.crop_mode,
        max_tokens=prep.max_tokens,
        patch_size=prep.patch_size,
        window=prep.window,
    )
    if prep.frames is not None:
        for kind in MEDIA:
            model.default_cfg.pop(kind, None)
            if prep.media in (None, kind):
                model.default_cfg[kind] = asdict(getattr(prep, kind))


def load_classifier(folder: str | os.PathLike[str]) -> SavedClassifier:
    """Read a classifier from a model folder, or from the folder of a run that has finished.

    Raises:
        FileNotFoundError: Where there is no model.
        ValueError: Where the configuration is damaged or names an unknown architecture; weights do not fit.
    """
    return read_classifier(load_model(folder), folder)


def read_classifier(model: VisionModel, source: str | os.PathLike[str]) -> SavedClassifier:
    """Read from a model's `default_cfg` the names of its classes and how images are prepared for it.

    Args:
        model: In eval mode.
        source: What to call it in messages.

    Raises:
        ValueError: Where there are not as many names as classes, or no classes.
    """
    if not model.num_classes:
        raise ValueError(
            f"{source} holds a model without a classifier: fine-tune it with `vit finetune --from`, "
            "or measure its features with `vit evaluate --probe`"
        )
    classes = tuple(model.default_cfg.get("label_names") or map(str, range(model.num_classes)))
    if len(classes) != model.num_classes:
        raise ValueError(f"{source}: label_names must name {model.num_classes} classes, got {len(classes)}")
    if len(set(classes)) < len(classes) or not all(isinstance(name, str) and name for name in classes):
        wrong = next(
            name for name in classes if not isinstance(name, str) or not name or classes.count(name) > 1
        )
        raise ValueError(f"{source}: label_names must be different names, got {wrong!r}")
    problem = read_problem(classes, model.default_cfg.get(TASK) or {}, source)
    return SavedClassifier(model, problem, preprocessing_for(model))
