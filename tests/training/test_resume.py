from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import train


@pytest.mark.parametrize(
    ("options", "checkpoint"),
    [
        ({}, "epoch-0002"),
        ({"every_n_steps": 4}, "epoch-0001-batch-000004"),
        ({"every_n_steps": 3, "validations": 2}, "epoch-0001-batch-000003"),
        ({"ema": 0.9}, "epoch-0002"),
        ({"ema": 0.9, "every_n_steps": 4}, "epoch-0002-batch-000004"),
        ({"accumulate": 2, "every_n_steps": 2}, "epoch-0001-batch-000004"),
        ({"precision": "bf16-mixed", "clip": 0.1}, "epoch-0001"),
        ({"clip": 0.1, "every_n_steps": 1}, "epoch-0002-batch-000001"),
    ],
    ids=["epoch", "middle", "validation", "ema", "ema-middle", "accumulate", "bf16", "clip"],
)
def test_resumed_losses_equal_the_uninterrupted_ones(
    tmp_path: Path, options: dict[str, Any], checkpoint: str
) -> None:
    whole = train(tmp_path / "whole", keep=100, **options)
    resumed = train(tmp_path / "again", resume=tmp_path / "whole" / checkpoint, keep=100, **options)

    assert 0 < len(resumed.train) < len(whole.train)
    assert 0 < len(resumed.val) < len(whole.val)
    assert list(resumed.train) == list(whole.train)[-len(resumed.train) :]
    for losses, reference in ((resumed.train, whole.train), (resumed.val, whole.val)):
        assert losses == {when: reference[when] for when in losses}
