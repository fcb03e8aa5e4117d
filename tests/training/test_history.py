from pathlib import Path

from vit_pytorch.training.history import read_rows, write_rows


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"epoch": 1.0, "val/loss": 0.25, "seconds": 1.5},
        {"epoch": 2.0, "val/loss": 1e-7, "seconds": 3.0},
    ]
    write_rows(tmp_path / "metrics.csv", rows)
    assert read_rows(tmp_path / "metrics.csv") == rows
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "1,0.25,1.5"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
