"""SimpleViT on videos, at the sizes of the ViT paper, cut as VideoMAE cuts them."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES
from vit_pytorch.registry.vit_3d import TINY, VIDEO
from vit_pytorch.simple_vit_3d import SimpleViT3D

PARAMETERS = {"tiny": 5_826_856, "small": 22_269_544, "base": 87_005_416}

ENTRIES = [
    ModelEntry(
        name=f"simple_vit_3d_{size}_16x2",
        architecture=SimpleViT3D,
        config={**VIDEO, **SIZES[size], "num_classes": 1000},
        parameters=parameters,
        # A width that three axes cannot share out evenly.
        tiny={**TINY, "dim": 28},
        default_cfg=PREPARE,
    )
    for size, parameters in PARAMETERS.items()
]
