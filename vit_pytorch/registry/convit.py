"""ConViT at its authors' sizes (d'Ascoli et al. 2021, table 1), by timm's names."""

from vit_pytorch.convit import ConViT
from vit_pytorch.registry.entry import IMAGENET, NO_BATCH, ModelEntry
from vit_pytorch.registry.vit import TINY

# name: parameters, heads of 48 channels
MODELS = {"convit_tiny": (5_710_512, 4), "convit_small": (27_777_322, 9), "convit_base": (86_540_040, 16)}


def _entry(name: str) -> ModelEntry:
    parameters, heads = MODELS[name]
    dim = 48 * heads
    return ModelEntry(
        name=name,
        architecture=ConViT,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            "dim": dim,
            "depth": 12,
            "heads": heads,
            "mlp_dim": 4 * dim,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, "depth": 3, "local_layers": 2},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        hub_id=f"timm/{name}.fb_in1k",
        exceptions={
            **NO_BATCH,
            "recorder_misses_no_softmax": "the weights that are recorded hold a softmax over positions, too",
        },
    )


ENTRIES = [_entry(name) for name in MODELS]
