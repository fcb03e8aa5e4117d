"""Starting from weights that exist, and choosing which of the model's weights learn."""

import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.create import architectures, load_model, model_folder, read_config
from vit_pytorch.distill import Distillable
from vit_pytorch.extras import install_command
from vit_pytorch.layers.init import init_linears
from vit_pytorch.learnable_memory_vit import Mode
from vit_pytorch.memory_vit import MemoryViT
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.registry import find_entry
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.trained import name_trained
from vit_pytorch.training.config import PUBLISHED, TuningConfig
from vit_pytorch.vit import ViT
from vit_pytorch.weights import HUB


def load_start(model: VisionModel, weights: str, name: str) -> None:
    """Load the weights that a run starts from, positions resized, under a new classifier of zeros.

    Args:
        model: The run's model.
        weights: A run, a model folder, a weight file, `hf-hub:NAME`, or `published`.
        name: The model's name in the registry.

    Raises:
        ValueError: Where the weights do not fit, or none are published.
        OSError: Where they cannot be read.
    """
    load_pretrained(model, find_start(model, weights, name), new_classifier=True)
    init_linears(model.get_classifier(), nn.init.zeros_)


def find_start(model: VisionModel, weights: str, name: str) -> str | Path | dict[str, Tensor]:
    """Return the weights that a run starts from, as `load_pretrained` takes them; see `load_start`."""
    if weights == PUBLISHED:
        published = find_entry(name).hub_id
        if published is None:
            raise ValueError(
                f"no published weights are known for {name}; name a run, a folder or a file"
                f"{name_trained(name)}"
            )
        return f"{HUB}{published}"
    return _read_folder(model, weights) if Path(weights).is_dir() else weights


def _read_folder(model: VisionModel, folder: str) -> Path | dict[str, Tensor]:
    """Find a saved model's weights; of a distilled model those of the plain one, where that is wanted."""
    saved = architectures()[read_config(model_folder(folder))["architecture"]]
    if issubclass(saved, Distillable) and not isinstance(model, Distillable):
        distilled = load_model(folder)
        assert isinstance(distilled, Distillable)
        return distilled.to_vit().state_dict()
    return model_folder(folder)


def arrange(model: VisionModel, config: TuningConfig) -> VisionModel:
    """Freeze all weights but those that a configuration names; return the same model, unless it gets memory.

    Raises:
        ValueError: Where the model has no place for what the method adds.
    """
    if config.method == "head":
        freeze(model)
    elif config.method == "lora":
        add_lora(model, rank=config.rank, alpha=config.alpha)
    elif config.method == "memory":
        return add_memory(model, memories=config.memories, mode=config.memory_mode)
    return model


def settle(model: VisionModel, config: TuningConfig) -> None:
    """Make a trained model again what it was built as."""
    if config.method == "lora":
        merge_lora(model)


def freeze(model: VisionModel) -> None:
    """Keep all weights but the classifier's as they are, and the layers in front of it in eval."""
    model.requires_grad_(False).eval()
    model.get_classifier().requires_grad_(True).train()


def check_installed(method: str) -> None:
    """Check that what a method needs is installed.

    Raises:
        ValueError: Where it is not.
    """
    if method == "lora" and find_spec("peft") is None:
        raise ValueError(f"method 'lora' needs one more package: {install_command('lora')}")


def add_lora(model: VisionModel, *, rank: int, alpha: int) -> None:
    """Add low-rank updates to the linear layers of attention, which then learn alone with the classifier.

    Raises:
        ValueError: Where the model has no such layers, all are narrower than the rank, or peft is not
            installed.
    """
    check_installed("lora")
    from peft import LoraConfig, inject_adapter_in_model

    targets = attention_layers(model)
    if not targets:
        raise ValueError(f"{type(model).__name__} has no linear layers of attention for low-rank updates")
    layers = [layer for name in targets if isinstance(layer := model.get_submodule(name), nn.Linear)]
    width = max(min(layer.in_features, layer.out_features) for layer in layers)
    if rank > width:
        raise ValueError(
            f"rank must be at most {width}, the width of the layers that are updated, got {rank}"
        )
    freeze(model)
    pattern = "|".join(map(re.escape, targets))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), model)
    model.get_classifier().requires_grad_(True)


def add_memory(model: VisionModel, *, memories: int, mode: Mode) -> MemoryViT:
    """Put a ViT under memory tokens and a class token, which learn alone with a new classifier of zeros.

    Raises:
        ValueError: Where the model is no plain ViT, or has no class token whose place the mode takes.
    """
    if not isinstance(model, ViT | SimpleViT):
        raise ValueError(f"method 'memory' needs a plain ViT, got {type(model).__name__}")
    num_classes = model.num_classes
    model.reset_classifier(0)
    adapted = MemoryViT.around(model, num_classes=num_classes, num_memories_per_layer=memories, mode=mode)
    init_linears(adapted.get_classifier(), nn.init.zeros_)
    return adapted


def attention_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that project to queries, keys and values, and back."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and re.fullmatch(r"to_(q|k|v|kv|qkv|out)", name.rpartition(".")[2])
        and "feedforward" not in name.split(".")
    ]


def merge_lora(model: VisionModel) -> None:
    """Add low-rank updates to the weights that they belong to; the model is then what it was built as."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
