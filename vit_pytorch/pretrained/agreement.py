"""What weights do not tell, and a configuration beside them does: activation, epsilon, heads and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from vit_pytorch.layers.blocks import ACTIVATIONS, GATED
from vit_pytorch.pretrained.extents import is_own
from vit_pytorch.registry import entries
from vit_pytorch.registry.words import VALUES, own_name

# Epsilons no further apart give the same function: transformers has 1e-12 where authors and timm have 1e-6.
SAME_EPS = 1.001e-6
# What configurations of transformers hold and their models do not read.
UNREAD = {"cvt": ("layer_norm_eps",)}
# Epsilons that they have beside the one that their configurations name.
FIXED_EPS = {"swin": (1e-5,), "swinv2": (1e-5,)}
# What is classified, by the kind of model.
POOLS = {"vit": "cls", "deit": "cls", "vit_msn": "cls", "vivit": "cls", "ijepa": "mean"}
# Settings of one kind of model, and what they are in a model of ours with these arguments.
PARTICULAR: dict[str, dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    "swinv2": {"pretrained_window_sizes": lambda own: _trained_windows(own)},
    "hiera": {
        "masked_unit_size": lambda own: [own["mask_unit_size"]] * 2,
        "masked_unit_attention": lambda own: [
            stage < own["windowed_stages"] for stage in range(len(own["depth"]))
        ],
    },
    "cvt": {
        "stride_kv": lambda own: [own[f"s{stage}_kv_proj_stride"] for stage in (1, 2, 3)],
        "patch_stride": lambda own: [own[f"s{stage}_emb_stride"] for stage in (1, 2, 3)],
    },
    "mobilevit": {"output_stride": lambda own: 32},
    "poolformer": {"pool_size": lambda own: own["pool_size"]},
}
WORDS = {"cls": "the first token", "mean": "the mean of the patches"}


@dataclass(frozen=True)
class Settings:
    """What a model computes with, by our words; empty where it is not known.

    Args:
        act: activations of the feed-forwards.
        norm_eps: epsilons of the norms.
        heads: numbers of heads in the order of the layers, of equal ones in a row the first.
        theta: bases of the rotary frequencies.
    """

    act: tuple[str, ...] = ()
    norm_eps: tuple[float, ...] = ()
    heads: tuple[int, ...] = ()
    theta: tuple[float, ...] = ()


def check_agreement(
    model: nn.Module,
    config: Mapping[str, Any],
    saved: nn.Module | None,
    *,
    source: str,
    classifies: bool = True,
) -> None:
    """Check that a model computes with what the configuration beside a checkpoint says.

    Args:
        model: what will take the weights.
        config: the checkpoint's configuration, of transformers, timm or this package; may be empty.
        saved: what `build_saved` makes of it.
        source: where it comes from, for errors.
        classifies: the checkpoint's classifier is the model's, which depends on what is pooled.

    Raises:
        ValueError: if the model computes with something else; says what to build it with.
    """
    kind = type(model).__name__
    arguments: Mapping[str, Any] = getattr(model, "config", {})
    own, theirs = asdict(settings_of(model)), asdict(configured(model, config, saved))
    lines, cures = [], []
    for name, found in theirs.items():
        if own[name] and not _agree(name, found, own[name]):
            lines.append(f"{name} is {_told(found)}, the model's {_told(own[name])}")
            if name in arguments and (name == "heads" or len(found) == 1):
                cures.append(f"build it with {name}={found[0] if len(found) == 1 else found!r}")
    particular = PARTICULAR.get(config.get("model_type", ""), {})
    for name, read in particular.items():
        if name in config and config[name] != read(arguments):
            lines.append(f"{name} is {config[name]}, the model's {read(arguments)}")
    pool = POOLS.get(config.get("model_type", ""))
    if isinstance(config.get("use_mean_pooling"), bool):
        pool = "mean" if config["use_mean_pooling"] else "cls"
    if classifies and pool is not None and arguments.get("num_classes") and model.pool != pool:
        lines.append(f"what is classified is {WORDS[pool]}, the model's pool is {model.pool!r}")
    if lines:
        raise ValueError(
            f"the configuration of {source} describes another function than {kind} computes:\n"
            + "\n".join([*lines, *cures])
            + "\nto load the weights all the same, pass the state dict without the configuration"
        )


def settings_of(model: nn.Module) -> Settings:
    """Return what a model computes with, as its modules say."""
    modules: list[Any] = list(model.modules())
    acts = [_act_name(part.act) for part in modules if hasattr(part, "act") and hasattr(part, "to_hidden")]
    epsilons = [part.eps for part in modules if hasattr(part, "eps") and not hasattr(part, "running_mean")]
    heads = [part.heads for part in modules if hasattr(part, "heads") and hasattr(part, "dim_head")]
    thetas = [part.theta for part in modules if hasattr(part, "theta")]
    return Settings(
        act=tuple(sorted(set(acts))),
        norm_eps=tuple(sorted({eps for eps in epsilons if eps is not None})),
        heads=_runs(heads),
        theta=tuple(sorted(set(thetas))),
    )


def configured(model: nn.Module, config: Mapping[str, Any], saved: nn.Module | None) -> Settings:
    """Return what a configuration says: ours and timm's by a model, transformers' by its words.

    Args:
        model: what will take the weights.
        config: the configuration; of a model of images and texts, that of the images is read.
        saved: what `build_saved` makes of it.
    """
    if is_own(config):
        return Settings() if saved is None else settings_of(saved)
    if config.get("architecture") in entries():
        entry = entries()[config["architecture"]]
        # timm keeps the weights of some models, such as OpenAI's with QuickGELU, under another one's name
        named = entries().get(getattr(model, "default_cfg", {}).get("architecture", ""))
        if (
            named is not None
            and (named.hub_id or "").partition(".")[0] == f"timm/{entry.name}" != f"timm/{named.name}"
        ):
            return Settings()
        parameters = entry.architecture._hub_mixin_init_parameters
        arguments = config.get("model_args") or {}
        acts = {name: act for name, act in arguments.items() if own_name(name, parameters) == "act"}
        with torch.device("meta"):
            settings = settings_of(entry.build(**acts))
        if "norm_layer" in arguments:
            settings = replace(settings, norm_eps=())
        return (
            replace(settings, heads=_runs(arguments["num_heads"])) if "num_heads" in arguments else settings
        )
    if isinstance(config.get("vision_config"), Mapping):
        config = config["vision_config"]
    if "model_type" not in config:
        return Settings()
    told = {k: v for k, v in config.items() if k not in UNREAD.get(config["model_type"], ())}
    act, eps = told.get("hidden_act"), told.get("layer_norm_eps")
    act = VALUES["act"].get(act, act) if isinstance(act, str) else None
    if told.get("use_swiglu_ffn") or (told.get("use_gated_mlp") and act == "silu"):
        act = "swiglu"
    elif told.get("use_gated_mlp"):
        act = f"{act}, gated"
    heads = told.get("num_attention_heads", told.get("num_heads"))
    theta = told.get("rope_theta")
    return Settings(
        act=() if act is None else (act,),
        norm_eps=() if eps is None else (float(eps), *FIXED_EPS.get(config["model_type"], ())),
        heads=_runs(heads),
        theta=() if theta is None else (float(theta),),
    )


def _runs(heads: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return numbers of heads, of equal ones in a row the first."""
    return tuple(number for number, _ in groupby([heads] if isinstance(heads, int) else heads or ()))


def _act_name(module: nn.Module) -> str:
    """Return what an activation is called here."""
    known = {**ACTIVATIONS, **GATED}
    return next((name for name, build in known.items() if repr(build()) == repr(module)), repr(module))


def _agree(name: str, theirs: tuple[Any, ...], own: tuple[Any, ...]) -> bool:
    """Return whether a model has the values that a configuration says; it may have more, but for heads."""
    if name == "heads":
        return not theirs or theirs == own
    if name == "norm_eps":
        return all(any(abs(eps - other) <= SAME_EPS for other in own) for eps in theirs)
    return set(theirs) <= set(own)


def _trained_windows(own: Mapping[str, Any]) -> list[int]:
    """Return the windows that Swin V2's weights were trained with, 0 for the model's."""
    size, count = own["pretrained_window_size"], len(own["depth"])
    return [size or 0] * count if size is None or isinstance(size, int) else list(size)


def _told(values: tuple[Any, ...]) -> str:
    """Write values for an error."""
    return ", ".join(map(str, values))
