"""Models in stages whose probability to drop a branch rises linearly over the blocks of all stages."""

import pytest

from vit_pytorch import create_model
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.registry import find_entry

RISING = (
    "pit_ti_224",
    "twins_svt_small",
    "regionvit_tiny_224",
    "crossformer_tiny_patch4_group7_224",
    "scalable_vit_small",
    "sepvit_lite",
    "maxvit_tiny_tf_224",
    "nest_tiny",
)


@pytest.mark.parametrize("name", RISING)
def test_rises_over_all_stages(name):
    model = create_model(name, **{**find_entry(name).tiny, "drop_path": 0.5})
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [
        sorted({module.p for module in block.modules() if isinstance(module, DropPath)}) for block in blocks
    ]
    last = len(blocks) - 1
    assert last > 1
    assert rates == [[], *([pytest.approx(0.5 * block / last)] for block in range(1, last + 1))]
