"""Loading checkpoints of any known format into a model, or saying what does not fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from vit_pytorch.backbone import Backbone
from vit_pytorch.base import VisionModel
from vit_pytorch.layers.attention import Attention
from vit_pytorch.layers.positions import SinCosPositions
from vit_pytorch.layers.relative import TokenBias
from vit_pytorch.legacy import upgrade_state
from vit_pytorch.pretrained.agreement import check_agreement
from vit_pytorch.pretrained.biases import fit_biases
from vit_pytorch.pretrained.extents import Extents, build_saved, read_extents, table_extents
from vit_pytorch.pretrained.files import PREFIXES
from vit_pytorch.pretrained.inputs import fit_inputs
from vit_pytorch.pretrained.positions import fit_positions
from vit_pytorch.pretrained.rules import Format
from vit_pytorch.pretrained.source import Checkpoint, open_source
from vit_pytorch.pretrained.tables import formats_for
from vit_pytorch.registry import entries
from vit_pytorch.registry.entry import classifier_layers
from vit_pytorch.vit import ViT
from vit_pytorch.weights import load_weights, name_few, state_dict_diff

logger = logging.getLogger(__name__)

# how the names of the public package's formats begin
PUBLIC = "vit-pytorch "
# the name of ours
OWN = "vit_pytorch"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What `load_pretrained` did.

    Args:
        source: where the weights came from.
        format: the format that was recognised.
        kept: parameters of the model that the checkpoint had nothing for and that stay as they were.
        dropped: what the checkpoint had and the model did not use; by our names, where there is one.
        resized: position embeddings and biases that were interpolated, each with its grid and the model's.
        adapted: weights of a first layer that were changed for other channels or another patch size, each
            with its shape and the model's.
        identities: output projections of attention with one head that the checkpoint does without, as the
            public package does where the head has the model's dimension; they are identities.
        license: licence of the weights, where their configuration names it.
    """

    source: str
    format: str
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    adapted: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    license: str | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        licence = f", licence {self.license}" if self.license else ""
        said = [f"loaded {self.source} (format {self.format}{licence})"]
        if self.kept:
            said.append(f"kept as they were: {', '.join(self.kept)}")
        if self.dropped:
            said.append(f"not used: {', '.join(self.dropped)}")
        said += [f"{name} resized from {old} to {new}" for name, (old, new) in self.resized.items()]
        said += [f"{name} adapted from {old} to {new}" for name, (old, new) in self.adapted.items()]
        if self.identities:
            said.append(f"identities, as the checkpoint has none: {', '.join(self.identities)}")
        return "; ".join(said)


def load_pretrained(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    strict: bool = False,
    grid: Sequence[int] | Literal["model"] | None = None,
    antialias: bool = True,
    new_classifier: bool = False,
    key: str | None = None,
) -> LoadReport:
    """Load a published checkpoint into a model, all or nothing.

    The format is recognised by the names: ours, timm, torchvision, transformers, Google's `.npz`
    (vit_jax and big_vision), the public vit-pytorch package. Position embeddings and biases of another grid
    are interpolated; a first layer for RGB or grey images is adapted to the model's channels
    (`adapt_channels`) and patch size (`resize_patches`); a classifier for another number of classes is left
    out and the model's stays as it is, which a warning says.

    Args:
        model: what takes the weights: a model, or a noise predictor.
        checkpoint: a weight file; a folder with `model.safetensors` or `pytorch_model.bin`;
            `hf-hub:organisation/name`; or a state dict.
        strict: refuse to resize positions, to adapt the first layer and to leave the classifier out.
        grid: the checkpoint's grid of patches, (rows, columns), or "model" for weights of this very model;
            default that of the configuration beside the weights, or a square. A table for a grid that is not
            square is not taken for the model's own.
        antialias: low-pass when positions shrink, as timm does; transformers does not.
        new_classifier: the caller initialises a classifier that is not the checkpoint's, so that there is
            nothing to warn of.
        key: which state dict is meant where a checkpoint holds several: a key of it (`model_ema`), or what
            names begin with (`teacher` for `teacher.…`).

    Returns:
        What was done; it is logged, and the model's `load_report`.

    Raises:
        ValueError: where the format is unknown or anything does not fit, with the difference and the
            named model that the checkpoint fits, where there is one; or the configuration beside the weights
            says another activation, epsilon, number of heads or base of rotary frequencies than the model
            computes with; or layers of the model were removed. The model is unchanged then.
        OSError: where the checkpoint cannot be read.
    """
    if isinstance(model, Backbone) or (isinstance(model, VisionModel) and model.pruned):
        raise ValueError(
            f"layers of this {type(model).__name__} may be missing: load weights into the whole model, "
            "before `features_only`, `Backbone` or `prune_intermediate_layers` removes some"
        )
    source = open_source(checkpoint, key=key)
    try:
        # "model" is a word, any other sequence has numbers
        told = None if isinstance(grid, str) else grid
        if isinstance(grid, str) and grid != "model":
            raise ValueError(f"grid must be rows and columns, or 'model', got {grid!r}")
        saved = build_saved(model, source.config)
        extents = Extents(table_extents(model)) if grid == "model" else read_extents(source.config, saved)
        state, report = fit(
            model, source.state, source=source.name, grid=told, antialias=antialias, extents=extents
        )
        if strict and (report.resized or report.kept or report.adapted):
            raise ValueError(f"{source.name} does not fit {type(model).__name__} strictly: {report}")
        check_agreement(model, source.config, saved, source=source.name, classifies=not report.kept)
    except ValueError as error:
        fitting = matching_models(source.state)
        hint = f"\nit fits {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"{error}{hint}{_stray_prefix(model, source.state)}") from error
    report = replace(report, license=source.license)
    load_weights(model, state, source=source.name)
    if isinstance(model, VisionModel):
        # of weights for images in a model of clips and volumes, or the other way round
        unfit = ("window",) if len(model.image_size) > 2 else ("video", "volume")
        for name, value in source.prepare.items():
            if name not in unfit and (name not in ("mean", "std") or len(value) == model.channels):
                model.default_cfg[name] = value
    announce(model, report, warn=not new_classifier)
    if isinstance(model, ViT) and "positions" in model.config and not source.config:
        _warn_of_positions(model, report)
    return report


def _warn_of_positions(model: ViT, report: LoadReport) -> None:
    """Warn of weights whose tensors tell no positions in a model without any, which has no name."""
    layout = next(layout for layout in formats_for(model) if layout.name == report.format)
    entry = entries().get(model.default_cfg["architecture"])
    tells = layout.rotary is not None or layout.name == OWN or layout.name.startswith(PUBLIC)
    named = entry is not None and entry.config.get("positions", "learned") == model.config["positions"]
    inside = model.rotary is not None or any(isinstance(part, TokenBias) for part in model.modules())
    if tells or named or inside or model.positions is not None:
        return
    warnings.warn(
        f"no tensor of {report.source} tells which positions it was trained with, as where queries and keys "
        f"are rotated, and {type(model).__name__} has none: build it by name (`create_model`), pass a folder "
        "with its configuration, or give the model its positions",
        stacklevel=3,
    )


def announce(model: nn.Module, report: LoadReport, *, warn: bool = True) -> None:
    """Log a report, attach it to its model as `load_report`, and warn of parameters that were not loaded."""
    logger.info("%s", report)
    model.load_report = report  # type: ignore[assignment]
    if report.kept and warn:
        warnings.warn(
            f"{type(model).__name__}: {name_few(report.kept)} are not from {report.source} and have their "
            "initial values; train them before the model is used",
            stacklevel=3,
        )


def fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    grid: Sequence[int] | None = None,
    antialias: bool = True,
    extents: Extents | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Translate a state dict of any known format to exactly what a model takes; changes neither.

    Raises:
        ValueError: where that is not possible.
    """
    layout, bare = recognise(model, state, source=source)
    found, unused = layout.read(bare, model)
    # What stands beside the model, such as a loss or a metric of a training module; but what the model lacks
    # may be among it.
    beside = [name for name in found if name.startswith("/")]
    if beside and not any(name not in found for name in _without_classifier(model)):
        for name in beside:
            del found[name]
        unused += beside
    adapted = fit_inputs(model, found)
    kept, dropped = _fit_classifier(model, found) if isinstance(model, VisionModel) else ([], [])
    resized = fit_positions(model, found, grid=grid, antialias=antialias, extents=extents)
    resized |= fit_biases(model, found, grid=grid, extents=extents)
    identities = _fill_projections(model, found) if layout.name.startswith(PUBLIC) else []
    difference = state_dict_diff(model, found)
    if difference:
        raise ValueError(
            f"{source} (format {layout.name}) does not fit {type(model).__name__}:\n{difference}"
        )
    return found, LoadReport(
        source=source,
        format=layout.name,
        kept=tuple(kept),
        dropped=(*unused, *dropped),
        resized=resized,
        adapted=adapted,
        identities=tuple(identities),
    )


def recognise(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str
) -> tuple[Format, dict[str, Tensor]]:
    """Tell a state dict's format by its names, and give it under the format's bare names.

    Raises:
        ValueError: where no format fits; names those that were tried.
    """
    formats = formats_for(model)
    state = upgrade_state(state, model.state_dict())
    for layout in formats:
        bare = layout.strip_prefix(state)
        if bare is not None:
            return layout, bare
    raise ValueError(
        f"{source} is in none of the formats known for {type(model).__name__}"
        f" ({', '.join(layout.name for layout in formats)}); it begins with {', '.join(list(state)[:3])}"
    )


def to_format(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return a model's weights as another library's state dict.

    Args:
        model: whose weights.
        name: a format's name, such as "timm", "torchvision", "transformers" or "vit_jax".

    Raises:
        ValueError: where there is no such format, or it has no place for something that the model has.
    """
    formats = {layout.name: layout for layout in formats_for(model)}
    if name not in formats:
        raise ValueError(f"a format is one of {', '.join(formats)}; got {name!r}")
    state = dict(model.state_dict())
    if formats[name].fixed_positions:
        for key, module in model.named_modules():
            if isinstance(module, SinCosPositions):
                state[f"{key}.table"] = module.table
    return formats[name].write(state, model)


def matching_models(state: Mapping[str, Tensor]) -> list[str]:
    """Name the registered models that a checkpoint fits as they are, apart from the number of classes."""
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    size = sum(tensor.numel() for tensor in shapes.values())
    fitting = []
    for entry in entries().values():
        if not entry.parameters / 2 < size < entry.parameters * 2:
            continue
        with torch.device("meta"):
            model = entry.build()
        try:
            # Only shapes are compared, and named models are square.
            _, report = fit(model, shapes, source="", extents=Extents(table_extents(model)))
        except ValueError:
            continue
        if not report.resized and not report.adapted:
            fitting.append(entry.name)
    return fitting


def _stray_prefix(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return that a checkpoint fits once some of its names lose a wrapper's prefix; empty otherwise."""
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix): tensor.to("meta") for name, tensor in state.items()}
        count = sum(name.startswith(prefix) for name in state)
        if not count or len(bare) < len(state):
            continue
        try:
            fit(model, bare, source="", extents=Extents(table_extents(model)))
        except ValueError:
            continue
        return f"\nit fits without {prefix!r}, with which {count} of its {len(state)} names begin"
    return ""


def _fill_projections(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Add identities as output projections where attention has one head and the state dict none of them.

    Returns:
        The names that were added.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, Attention)}
    names = [f"{name}.to_out.{key}" for name, part in layers.items() for key in part.to_out.state_dict()]
    square = all(
        part.heads == 1 and part.to_out.in_features == part.to_out.out_features for part in layers.values()
    )
    if not names or not square or any(name in state for name in names):
        return []
    known = model.state_dict()
    for name in names:
        like = known[name]
        state[name] = torch.eye(len(like), device=like.device) if like.ndim > 1 else torch.zeros_like(like)
    return names


def _without_classifier(model: nn.Module) -> list[str]:
    """Return the names of a model's weights, except those of its classifier."""
    own = list(model.state_dict())
    if not isinstance(model, VisionModel):
        return own
    classifier = model.get_classifier()
    head = next(name for name, module in model.named_modules() if module is classifier)
    return [name for name in own if not name.startswith(f"{head}.")]


def _fit_classifier(model: VisionModel, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Put the model's own classifier in where the checkpoint's has other classes; changes the state dict.

    Returns:
        The names that are the model's, and the checkpoint's names that were left out.
    """
    classifier = model.get_classifier()
    (name,) = (name for name, module in model.named_modules() if module is classifier)
    own = {f"{name}.{key}": tensor for key, tensor in classifier.state_dict().items()}
    theirs = [key for key in state if key.startswith(f"{name}.")]
    last = classifier_layers(model)
    found = [state.get(f"{layer}.weight") for layer in last]
    rows = {0 if tensor is None else len(tensor) if tensor.ndim else 1 for tensor in found}
    wanted = model.state_dict()
    # A norm behind the pooling begins with the classifier, in models that were trained without either.
    after = {key: wanted[key] for key in wanted if key.startswith("fc_norm.")}
    begins = not theirs and not any(key in state for key in after)
    if rows == {model.num_classes} if own else not theirs and not (begins and after):
        return [], []
    if begins:
        own |= after
    # What comes before the layers of logits does not depend on the classes.
    before = {key for key in own if key in state and key.rpartition(".")[0] not in last}
    own = {key: tensor for key, tensor in own.items() if key not in before}
    theirs = [key for key in theirs if key not in before]
    # A hidden layer of the head goes with it where the model has none.
    theirs += [key for key in state if key.startswith("pre_logits.") and key not in wanted]
    for key in theirs:
        del state[key]
    state.update(own)
    return list(own), theirs
