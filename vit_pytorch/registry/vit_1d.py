"""The ViT on signals of 1024 values, at the smaller sizes of the ViT paper."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import SIZES
from vit_pytorch.vit_1d import ViT1D

PARAMETERS = {"tiny": 5_553_832, "small": 21_723_496, "base": 85_913_320}
TINY = {"seq_len": 48, "patch_size": 2, "num_classes": 7}

ENTRIES = [
    ModelEntry(
        name=f"vit_1d_{size}_patch16_1024",
        architecture=ViT1D,
        config={"seq_len": 1024, "patch_size": 16, "num_classes": 1000, **SIZES[size]},
        parameters=parameters,
        tiny={**TINY, "dim": 24, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 48},
    )
    for size, parameters in PARAMETERS.items()
]
