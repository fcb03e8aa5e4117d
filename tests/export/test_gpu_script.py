"""The script that checks and times the package on a GPU, at toy size on the processor."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(output: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(output), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_sections_of_several_kinds(tmp_path: Path) -> None:
    sections = ["contracts", "packing", "pretraining"]
    ran = run(tmp_path / "gpu.json", "--device", "cpu", "--toy", "--sections", *sections)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(dict.fromkeys(row["section"] for row in found["rows"])) == sections
    assert found["failed"] == found["left_out"] == []
    rows = {(row["section"], row["name"]): row for row in found["rows"]}
    assert rows["packing", "bf16"]["logits"] > rows["packing", "fp32"]["logits"]
    assert rows["pretraining", "DINO"]["ms"] > 0


def test_what_fails_is_written_down_and_the_rest_runs(tmp_path: Path) -> None:
    """Without a GPU the first section fails, which asks for its name."""
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.cuda.is_available = lambda: True\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    hidden = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    ran = run(tmp_path / "gpu.json", "--toy", "--sections", "environment", **hidden)
    assert ran.returncode == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["failed"]) == len(found["rows"]) == 1
    assert f"failed: {found['failed'][0]}" in ran.stderr
    assert found["failed"][0].startswith("environment: environment: ")


def test_time_that_does_not_suffice(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--toy", "--minutes", "0", "--sections", "speed"]
    ran = run(tmp_path / "gpu.json", *arguments)
    assert ran.returncode == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["left_out"] == ["speed: speed"]


def test_without_a_gpu(tmp_path: Path) -> None:
    ran = run(tmp_path / "gpu.json", CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 2
    assert "there is no GPU that torch can use" in ran.stderr
