"""$kind's models. FILL: the table of the paper that lists them."""

from vit_pytorch.$name import $kind
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

TINY = {"image_size": 32, "patch_size": 4, "num_classes": 7, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 48}

ENTRIES = [
    ModelEntry(
        # FILL: a model for each row of the paper's table, as timm or the official code names it.
        name="${name}_tiny_patch16_224",
        architecture=$kind,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            "dim": 192,
            "depth": 12,
            "heads": 3,
            "mlp_dim": 768,
        },
        # FILL: the exact number, of the reference.
        parameters=0,
        tiny=TINY,
        # FILL: how the published weights want images prepared, and where they are (`hub_id`).
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        # FILL: what the architecture cannot keep, one exception for one fact (`NO_ATTENTION`), or nothing.
        exceptions={},
    )
]
