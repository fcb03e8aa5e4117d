"""MobileViTV2 at the paper's seven widths (Mehta and Rastegari 2022, table 3)."""

from vit_pytorch.mobile_vit_v2 import MobileViTV2
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.mobile_vit import PREPARE

# per cent of the width: parameters
PARAMETERS = {
    50: 1_370_593,
    75: 2_866_009,
    100: 4_901_841,
    125: 7_478_089,
    150: 10_594_753,
    175: 14_251_833,
    200: 18_449_329,
}

ENTRIES = [
    ModelEntry(
        name=f"mobilevitv2_{percent:03}",
        architecture=MobileViTV2,
        config={"image_size": 256, "num_classes": 1000, "width": percent / 100},
        parameters=parameters,
        tiny={"image_size": 64, "num_classes": 7, "width": 0.125, "depths": (1, 1, 2)},
        default_cfg={**PREPARE, "crop_pct": 0.888},
        hub_id=f"timm/mobilevitv2_{percent:03}.cvnets_in1k",
        exceptions={"jit_trace": "PyTorch's group norm compares the size of the batch with a number"},
    )
    for percent, parameters in PARAMETERS.items()
]
