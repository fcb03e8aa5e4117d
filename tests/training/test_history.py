from pathlib import Path

import pytest
import torch

from vit_pytorch.training.history import read_rows, write_rows
from vit_pytorch.training.trainer import average


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"epoch": 1.0, "val/loss": 0.25, "seconds": 1.5},
        {"epoch": 2.0, "val/loss": 1e-7, "seconds": 3.0},
    ]
    write_rows(tmp_path / "metrics.csv", rows)
    assert read_rows(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "1,0.25,1.5"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_the_average_follows_fast_at_first_and_has_its_decay_later() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert average(zero, one, 0, decay=0.99).tolist() == pytest.approx([0.9, 0.9])
    assert average(zero, one, 10_000, decay=0.99).tolist() == pytest.approx([0.01, 0.01])
