"""Building a named model, with published weights where wanted, or one that was saved."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, overload

import torch

from vit_pytorch.backbone import Backbone
from vit_pytorch.base import (
    CONFIG_KEYS,
    CONFIG_NAME,
    OF_CLASSIFIER,
    TIMM_KEYS,
    UNPOOLED,
    VisionModel,
    check_default_cfg,
)
from vit_pytorch.distill import DISTILLABLE
from vit_pytorch.layers.arguments import check_arguments
from vit_pytorch.pretrained.load import LoadReport, announce, load_pretrained
from vit_pytorch.registry import entries, find_entry, renamed
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.trained import list_trained, name_trained, read_card, trained_folder
from vit_pytorch.weights import CHECKSUMS, HUB, init_empty_weights, likely_repository, read_settings

# where the folder of a run has its model
MODEL = "model"
# settings of `default_cfg` that the model itself knows
OF_MODEL = ("architecture", "input_size", "num_classes", *TIMM_KEYS)
# Architectures of which there are no named models, by their modules.
UNNAMED = {
    "attn_residual_with_dca_simple_vit": "DepthMixSimpleViT",
    "looped_vit": "LoopedViT",
    "max_vit_with_registers": "RegisterMaxViT",
    "memory_vit": "MemoryViT",
    "jet_vit": "JetViT",
    "levjepa": "VideoTransformer",
    "levjepa_nd": "NDTransformer",
    "na_vit_nested_tensor_3d": "NaViT3D",
    "rvt": "RvT",
    "simple_uvit": "SimpleUViT",
    "tome": "ToMeViT",
    "simple_vit_attn_residual": "AttentionResidualSimpleViT",
    "simple_vit_orthog_residual_update": "OrthogonalSimpleViT",
    "simple_vit_with_fft": "FrequencySimpleViT",
    "simple_vit_with_hyper_connections": "HyperConnectionSimpleViT",
    "simple_vit_with_relative_proj_pos_bias": "ProjectedBiasSimpleViT",
    "simple_vit_with_sparse_gating": "SparseGatingSimpleViT",
    "simple_vit_with_specialized_cls": "SpecializedSimpleViT",
    "vit_5": "ViT5",
    "vit_detpool": "DetPoolViT",
    "vit_nd": "ViTND",
    "vit_nd_pope": "PolarViTND",
    "vit_nd_rotary": "RotaryViTND",
    "vit_with_decorr": "DecorrelatedViT",
    "vit_with_keel_post_ln": "KeelViT",
    "simple_flash_attn_vit": "FlashSimpleViT",
    "simple_flash_attn_vit_3d": "FlashSimpleViT3D",
    "simple_vit_1d": "SimpleViT1D",
    "simple_vit_with_patch_dropout": "PatchDropoutSimpleViT",
    "simple_vit_with_qk_norm": "QKNormSimpleViT",
    "simple_vit_with_register_tokens": "RegisterSimpleViT",
    "simple_vit_with_value_residual": "ValueResidualSimpleViT",
    "vit_with_patch_dropout": "PatchDropoutViT",
    "vivit_with_moss": "MossViViT",
    "wwt": "WWT",
}


@overload
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool | str | os.PathLike[str] = ...,
    num_classes: int | None = ...,
    key: str | None = ...,
    features_only: Literal[False] = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
    **overrides: Any,
) -> VisionModel: ...


@overload
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool | str | os.PathLike[str] = ...,
    key: str | None = ...,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = ...,
    feature_cls: str | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
    **overrides: Any,
) -> Backbone: ...


def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    key: str | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    feature_cls: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> VisionModel | Backbone:
    """Build a named model, or one that was saved.

    Args:
        name: one of `list_models()`, with the tag of a release of timm's behind a point where one is wanted
            (`vit_small_patch16_224.augreg_in1k`), or a name that timm has retired for one, with a warning; or
            a trained model that ships with the package (`vit models --pretrained`), such as
            `cct_2_3x2_32.cifar10`; or a folder that `save_pretrained` wrote, or that of a finished run, whose
            model comes with its weights, in eval mode.
        pretrained: True for the weights that ship with the package, or else for the published ones, from the
            Hugging Face Hub; or a checkpoint of any known format: a weight file, a folder, or
            `hf-hub:organisation/name` (see `load_pretrained`).
        num_classes: number of logits; where it is not the checkpoint's, the classifier starts anew, which a
            warning says.
        key: which state dict is meant where the checkpoint holds several (see `load_pretrained`).
        features_only: return a `Backbone`, which computes the maps of some layers, for detection and
            segmentation.
        out_indices: layers of which the maps are (see `Backbone`).
        feature_cls: timm's word for how maps are taken; "getter", by `forward_intermediates`, is the only
            way.
        device: where the model is built.
        dtype: data type of its parameters and buffers.
        overrides: arguments of the architecture that shall differ from the named model's, or words of timm
            and transformers for the same, such as `img_size`, `in_chans` and `global_pool`; a saved model
            takes none.

    Returns:
        The model; where it has weights from elsewhere, `load_report` says what was loaded and what not.

    Raises:
        ValueError: where no model has that name, there are no published weights, the checkpoint does not fit,
            or an argument is of another type.
        UnknownArgumentError: where an override is not an argument of the model; it is a `TypeError` and a
            `ValueError`.
        OSError: where the checkpoint or the folder cannot be read, or the Hub cannot be reached and nothing
            is cached.
    """
    check_arguments(
        create_model,
        name=name,
        pretrained=pretrained,
        num_classes=num_classes,
        key=key,
        features_only=features_only,
        device=device,
        dtype=dtype,
    )
    if not features_only and (out_indices is not None or feature_cls is not None):
        raise ValueError("out_indices and feature_cls are of features_only=True")
    if feature_cls not in (None, "getter"):
        raise ValueError(f"feature_cls must be 'getter', got {feature_cls!r}")
    unpooled = overrides.get("global_pool") == UNPOOLED
    if unpooled:
        del overrides["global_pool"]
    with nullcontext() if device is None else torch.device(device):
        model = _build(name, pretrained=pretrained, num_classes=num_classes, key=key, **overrides)
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    if unpooled:
        model.reset_classifier(model.num_classes, UNPOOLED)
    return Backbone(model, out_indices) if features_only else model


def _build(
    name: str | os.PathLike[str],
    *,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    key: str | None,
    **overrides: Any,
) -> VisionModel:
    """Build a named model, or one that was saved; see `create_model`."""
    if isinstance(name, os.PathLike) or (name not in entries() and (os.sep in name or Path(name).is_dir())):
        if pretrained is not False or overrides or key is not None:
            model_folder(name)
            given = ["pretrained"] * (pretrained is not False) + ["key"] * (key is not None) + [*overrides]
            raise ValueError(
                f"the saved model in {os.fspath(name)} has its own weights and arguments; "
                f"only num_classes can be given, got {', '.join(given)}"
            )
        saved = load_model(name)
        if num_classes is not None and num_classes != saved.num_classes:
            dropped = _classifier_names(saved)
            saved.reset_classifier(num_classes)
            kept = _classifier_names(saved)
            announce(saved, replace(saved.load_report, kept=kept, dropped=dropped))
        return saved
    name, shipped = os.fspath(name), os.fspath(name) in list_trained()
    published: str | None
    if shipped:
        entry, published = trained_entry(name), str(trained_folder(name))
    else:
        if (now := renamed(name)) is not None:
            warnings.warn(f"timm has renamed {name} to {now}, which is built", FutureWarning, stacklevel=3)
            name = now
        name, _, tag = name.partition(".")
        entry = find_entry(name)
        repository = entry.repository(tag)
        published = None if repository is None else f"{HUB}{repository}"
    checkpoint = published if pretrained is True else pretrained
    if checkpoint is None:
        raise ValueError(
            f"no published weights are known for {name}; pass a checkpoint as `pretrained`"
            f"{name_trained(name)}"
        )
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    if checkpoint is False:
        if key is not None:
            raise ValueError(f"key={key!r} is of a checkpoint, but none is given as `pretrained`")
        return entry.build(**overrides)
    # A classifier of its own, where the checkpoint's has other classes, is the only part that starts anew.
    with nullcontext() if num_classes else init_empty_weights():
        model = entry.build(**overrides)
    report = load_pretrained(model, checkpoint, key=key)
    if shipped and pretrained is True and not report.kept:
        cfg = _tuples(read_config(trained_folder(name))["default_cfg"])
        model.default_cfg.update({key: cfg[key] for key in OF_CLASSIFIER if key in cfg})
    if report.kept and not num_classes:
        fresh = entry.build(**overrides).state_dict()
        model.load_state_dict({name: fresh[name] for name in report.kept}, strict=False, assign=True)
    return model


def comes_trained(name: str | os.PathLike[str]) -> bool:
    """Return whether a name is that of a trained model that ships with the package, and of no folder."""
    return os.fspath(name) in list_trained() and not Path(name).is_dir()


def is_named(name: str | os.PathLike[str]) -> bool:
    """Return whether a name is that of a model, with or without a tag, and of no folder."""
    known = os.fspath(name).partition(".")[0] in entries() and not Path(name).is_dir()
    return known or comes_trained(name)


def open_model(model: str | os.PathLike[str]) -> VisionModel:
    """Load a model with its weights: a named one, with those that are shipped or published, or a folder's.

    Raises:
        ValueError: where there are no weights for the name, or the folder's model is damaged.
        OSError: where there is no such folder, or the Hub cannot be reached and nothing is cached.
    """
    return create_model(model, pretrained=True).eval() if is_named(model) else load_model(model)


def trained_entry(name: str) -> ModelEntry:
    """Return a trained model that ships with the package as an entry of the registry, without its weights.

    Raises:
        ValueError: if no trained model has that name
    """
    config = read_config(trained_folder(name))
    cfg = _tuples(config["default_cfg"])
    return ModelEntry(
        name=cfg["architecture"],
        architecture=architectures()[config["architecture"]],
        config={key: value for key, value in config.items() if key not in CONFIG_KEYS},
        parameters=read_card(name)["parameters"],
        tiny={},
        default_cfg={key: cfg[key] for key in cfg if key not in (*OF_CLASSIFIER, *OF_MODEL)},
    )


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings read from JSON with tuples in place of lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def _classifier_names(model: VisionModel) -> tuple[str, ...]:
    """Return the names of a classifier's parameters."""
    classifier = model.get_classifier()
    (name,) = (name for name, module in model.named_modules() if module is classifier)
    return tuple(f"{name}.{key}" for key in classifier.state_dict())


def load_model(folder: str | os.PathLike[str]) -> VisionModel:
    """Read a model from a folder that `save_pretrained` wrote, or from that of a finished run.

    Returns:
        The model in eval mode.

    Raises:
        FileNotFoundError: where there is no model.
        ValueError: where the configuration is damaged or names an unknown architecture; weights do not fit.
    """
    place = model_folder(folder)
    config = read_config(place)
    found = config["architecture"]
    named = entries().get(config.get("default_cfg", {}).get("architecture"))
    # Two architectures may share a name, as the two variants of NaViT do.
    by_name = named is not None and named.architecture.__name__ == found
    architecture = named.architecture if named is not None and by_name else architectures()[found]
    model = architecture.from_pretrained(place)
    model.load_report = LoadReport(source=str(place), format="vit_pytorch")
    return model


def architectures() -> dict[str, type[VisionModel]]:
    """Return the classes that a saved model may be of, by name."""
    registered = {entry.architecture.__name__: entry.architecture for entry in entries().values()}
    distilled = {found.__name__: found for found in DISTILLABLE.values()}
    unnamed = {name: getattr(import_module(f"vit_pytorch.{file}"), name) for file, name in UNNAMED.items()}
    return {**registered, **distilled, **unnamed}


def model_folder(folder: str | os.PathLike[str]) -> Path:
    """Find where a model was saved: the folder itself, or that inside the folder of a finished run.

    Raises:
        FileNotFoundError: where there is no model.
        NotADirectoryError: where it is a file.
        ValueError: where the name is empty, which would be the current folder.
    """
    if not os.fspath(folder):
        raise ValueError("the name of a model must not be empty")
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file; expected the folder of a run or of a model. Weights go with their model's "
            f"name: `create_model(NAME, pretrained={str(folder)!r})`, `vit finetune --from {folder} --model "
            "NAME`; an exported model runs in its own runtime, as docs/deploy.md shows"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no such folder: {folder}; expected that of a run or of a model{likely_repository(folder)}"
        )
    for place in (folder / MODEL, folder):
        if (place / CONFIG_NAME).is_file():
            return place
    raise FileNotFoundError(
        f"{folder} has no model (no {MODEL}/{CONFIG_NAME}, no {CONFIG_NAME}); "
        "a run has one when it has finished"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a saved model.

    Raises:
        ValueError: where it is damaged, or names an unknown architecture.
    """
    file = folder / CONFIG_NAME
    config = read_settings(file)
    found = config.get("architecture")
    if not isinstance(found, str) or found not in architectures():
        raise ValueError(f"{file}: architecture must be one of {', '.join(architectures())}, got {found!r}")
    check_default_cfg(config.get("default_cfg", {}), str(file))
    name = config.get("default_cfg", {}).get("architecture")
    if not isinstance(name, str | None):
        raise ValueError(f"{file}: architecture in default_cfg must be a name, got {name!r}")
    return {name: value for name, value in config.items() if name not in CHECKSUMS}
