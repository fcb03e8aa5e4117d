"""CCT on videos of 8 frames: layers, kernel x convolutions, frames x size; windows of three frames."""

from vit_pytorch.cct import SIZES
from vit_pytorch.cct_3d import CCT3D
from vit_pytorch.registry.cct import PREPARE, TOKENIZER
from vit_pytorch.registry.cct import TINY as TINY_2D
from vit_pytorch.registry.entry import ModelEntry

PARAMETERS = {7: 6_780_201, 14: 25_321_385}
TINY = {**TINY_2D, "img_size": 16, "num_frames": 4}

ENTRIES = [
    ModelEntry(
        name=f"cct_3d_{layers}_7x2_8x224",
        architecture=CCT3D,
        config={
            "img_size": 224,
            "num_frames": 8,
            **SIZES[layers],
            "n_conv_layers": 2,
            **TOKENIZER[7],
            "num_classes": 1000,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**PREPARE, "interpolation": "bicubic"},
        exceptions={"indivisible_size": "its convolutions take videos of any size"},
    )
    for layers, parameters in PARAMETERS.items()
]
