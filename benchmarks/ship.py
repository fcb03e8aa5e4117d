"""Put the model of a finished run among the trained models that ship with the package, with its card.

    python benchmarks/ship.py runs/digits vit_patch4_24.digits --data digits --command "vit train" --commit …

Weights are stored in half precision. The model that is stored is measured again on the test images: where it
is right on fewer of them than the run's, nothing is written. Of `vit pretrain` the features are measured, by
the 20 nearest training images and by a linear classifier, beside those of the model with random weights.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from vit_pytorch.base import VisionModel
from vit_pytorch.cli.use import evaluation_loader
from vit_pytorch.create import load_model
from vit_pytorch.data import ImageDataset, ImageLoader, open_data
from vit_pytorch.data.datasets import Splits
from vit_pytorch.preprocessing import Preprocessing, preprocessing_for
from vit_pytorch.registry import find_entry
from vit_pytorch.storage import replacing
from vit_pytorch.trained import CARD, FOLDER
from vit_pytorch.training.evaluation import Evaluation, evaluate
from vit_pytorch.training.probing import Probe, embed, read_features
from vit_pytorch.training.probing import measure as run_probe
from vit_pytorch.training.saved import SavedClassifier, load_classifier, save_classifier

MOST_BYTES = 4_000_000
# test images on which the tests measure each model
PART = 500
# training images that a probe knows there
KNOWN = 5000
# share of the test images that half precision may cost the nearest neighbours
MOST_LOST = 0.001

Probed = dict[Probe, float]


@dataclass(frozen=True)
class Data:
    """Data of a trained model.

    Args:
        title: what they are called.
        source: as `vit train` takes them, `{folder}` for the folder in which they are.
        terms: their terms, in a few words.
        judged: why weights trained on them may be shipped.
        archive: tar file in the folder that has to be unpacked.
        tested: have a test split of their own.
    """

    title: str
    source: str
    terms: str
    judged: str
    archive: str | None = None
    tested: bool = False


CIFAR10 = Data(
    "CIFAR-10, JPEG copy",
    "wds:{folder}/cifar10_jpeg/train-{{00..03}}.tar,{folder}/cifar10_jpeg/train-04.tar,"
    "{folder}/cifar10_jpeg/test-00.tar",
    "no formal licence; research use",
    "CIFAR-10 (A. Krizhevsky, 2009) has no formal licence and is distributed for research; its "
    "photographs were collected from the web, and their owners were not asked. The weights hold no "
    "photographs and are shipped for research and teaching; anybody who needs weights with cleared rights "
    "should not use these. The copy is of lossy JPEG files, and figures are not comparable to the last half "
    "point with those of the original.",
    tested=True,
)
DATA = {
    "digits": Data(
        "scikit-learn digits",
        "digits",
        "public (CC BY 4.0 at UCI)",
        "The digits come with scikit-learn and, from UCI, under CC BY 4.0, which allows derived works with "
        "attribution: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (1998).",
    ),
    "cifar10": CIFAR10,
    "all_cifar10": replace(
        CIFAR10,
        source="wds:{folder}/cifar10_jpeg/train-{{00..04}}.tar,,{folder}/cifar10_jpeg/test-00.tar",
    ),
    "half_cifar10": replace(
        CIFAR10,
        title="CIFAR-10, JPEG copy, 20,000 of its training images",
        source=CIFAR10.source.replace("00..03", "00..01"),
    ),
    "fashion_mnist": Data(
        "Fashion-MNIST",
        "idx:{folder}/fashion-mnist",
        "MIT",
        "Fashion-MNIST (Zalando SE, 2017) is under the MIT licence, which allows derived works.",
        tested=True,
    ),
    "signs": Data(
        "Sign Language Digits",
        "{folder}/sign_digits",
        "Apache-2.0",
        "The photographs (A. Mavi and others, Sign Language Digits Dataset, 2017) are under Apache-2.0, "
        "which allows derived works.",
        archive="sign_digits.tar",
    ),
}


def open_splits(tag: str, folder: str, seed: int, held: ExitStack) -> Splits:
    """Open the data of a run; archives are unpacked into a temporary folder."""
    data = DATA[tag]
    if data.archive is not None:
        unpacked = held.enter_context(tempfile.TemporaryDirectory())
        with tarfile.open(Path(folder) / data.archive) as archive:
            archive.extractall(unpacked, filter="data")
        folder = unpacked
    return open_data(data.source.format(folder=folder), seed=seed, test_fraction=0.2)


def part_of(images: ImageDataset, most: int = PART) -> ImageDataset:
    """Return a fixed part of the images, evenly spread."""
    return images.subset(torch.linspace(0, len(images) - 1, min(most, len(images))).long())


def load(images: ImageDataset, prep: Preprocessing, classes: int) -> ImageLoader:
    """Return a loader of images as a model takes them."""
    return evaluation_loader(images, prep, classes, batch_size=100, workers=0, on_bad="stop")


def measure(saved: SavedClassifier, images: ImageDataset) -> Evaluation:
    """Measure a model on images."""
    loader = load(images, saved.preprocessing, len(saved.classes))
    return evaluate(saved.model, [loader], saved.problem, saved.preprocessing)


def probe(
    model: VisionModel, splits: Splits, *, known: int | None = None, asked: int | None = None
) -> Probed:
    """Measure what the features of a model are worth: on the test images, knowing training images.

    Args:
        known: labelled images that the probes know; all training images by itself.
        asked: test images; all by itself.
    """
    assert splits.test is not None
    parts = part_of(splits.train, known or len(splits.train)), part_of(splits.test, asked or len(splits.test))
    seen = [
        read_features(
            lambda images: embed(model, images),
            load(images, preprocessing_for(model), len(splits.classes)),
            torch.device("cpu"),
        )
        for images in parts
    ]
    return {kind: run_probe(kind, *seen) for kind in ("knn", "linear")}


def rename(model: VisionModel, name: str) -> None:
    """Give a model, whose run may have spelled it out, the name in the registry under which it is built."""
    named = find_entry(name).build(num_classes=model.num_classes, channels=model.channels).eval()
    named.load_state_dict(model.state_dict())
    images = torch.rand(1, model.channels, *model.image_size)
    if not torch.equal(named(images), model(images)):
        raise SystemExit(f"the model of the run is no {name}")
    model.default_cfg["architecture"] = name


def store_classifier(run: Path, place: Path, splits: Splits, name: str) -> dict[str, Any]:
    """Store the classifier of a run in half precision, under its name, and return its figures."""
    assert splits.test is not None
    images = splits.test
    whole = measure(load_classifier(run), images).as_dict()
    saved = load_classifier(run)
    rename(saved.model, name)
    saved.model.half()
    save_classifier(saved, place)
    stored = load_classifier(place)
    half, part = measure(stored, images).as_dict(), measure(stored, part_of(images)).as_dict()
    if half["accuracy"] < whole["accuracy"]:
        raise SystemExit(
            f"half precision costs accuracy: {whole['accuracy']:.4f} becomes {half['accuracy']:.4f}"
        )
    same = ("class_accuracy", "loss", "calibration_error", "calibrated_error", "temperature")
    return {
        "classes": list(stored.classes),
        "accuracy": half["accuracy"],
        "accuracy_single_precision": whole["accuracy"],
        **{key: half[key] for key in same},
        "part": {"images": part["images"], "accuracy": part["accuracy"]},
        "validation": curve(run, "val/accuracy"),
    }


def store_backbone(run: Path, place: Path, splits: Splits, method: dict[str, Any]) -> dict[str, Any]:
    """Store what was learned without labels in half precision, and return what its features are worth."""
    model = load_model(run)
    torch.manual_seed(0)
    untrained = type(model)(**model.config)
    untrained.default_cfg = model.default_cfg
    before, whole = probe(untrained.eval(), splits), probe(model, splits)
    model.half().save_pretrained(place)
    stored = load_model(place)
    half = probe(stored, splits)
    if half["knn"] < whole["knn"] - MOST_LOST:
        raise SystemExit(f"half precision costs accuracy: {whole['knn']:.4f} becomes {half['knn']:.4f}")
    known = min(KNOWN, len(splits.train))
    return {
        "method": method,
        "classes": [],
        "knn_accuracy": half["knn"],
        "knn_accuracy_single_precision": whole["knn"],
        "linear_accuracy": half["linear"],
        "untrained": before,
        "part": {"images": PART, "known": known, **probe(stored, splits, known=known, asked=PART)},
        "validation": curve(run, "val/knn_accuracy"),
    }


def ship(
    run: Path, name: str, *, tag: str, folder: str, command: str, commit: str, remark: str, seeds: list[Path]
) -> dict[str, Any]:
    """Write a run's model and its card into the package, and return the card."""
    summary = json.loads((run / "summary.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    data, where = DATA[tag], FOLDER / name
    with ExitStack() as held:
        splits = open_splits(tag, folder, summary["split_seed"], held)
        with replacing(where) as place:
            place.mkdir()
            if method := summary.get("method"):
                figures = store_backbone(run, place, splits, method)
            else:
                figures = store_classifier(run, place, splits, name.partition(".")[0])
            # the Hub's card, which says less than ours
            (place / "README.md").unlink()
            weights = place / "model.safetensors"
            # safetensors makes its file for the owner alone
            weights.chmod(0o644)
            stored = load_model(place)
            prep = preprocessing_for(stored)
            size = weights.stat().st_size
            if size > MOST_BYTES:
                raise SystemExit(f"{name} has {size} bytes, more than {MOST_BYTES}")
            same = ("seed", "split_seed", "epochs", "training_seconds", "threads", "versions")
            card = {
                "name": name,
                "architecture": type(stored).__name__,
                "parameters": sum(parameter.numel() for parameter in stored.parameters()),
                "bytes": size,
                "input_size": [prep.channels, *prep.size],
                "data": data.title,
                "source": data.source,
                "archive": data.archive,
                "images": summary["images"],
                "terms": data.terms,
                "terms_judged": data.judged,
                "command": command,
                "commit": commit,
                **{key: summary[key] for key in same},
                "precision": config["precision"],
                **figures,
                "other_seeds": [other_seed(other, summary, tested=data.tested) for other in seeds],
                "limits": [
                    f"{f'{1 + len(seeds)} seeds' if seeds else 'One run with one seed'}; {remark}",
                    "The figures are of images drawn as the training images were; others may do worse.",
                    *([] if method else ["An image of anything else gets one of the classes, too."]),
                    "Fairness, robustness and safety were not measured.",
                ],
            }
            (place / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def other_seed(run: Path, shipped: dict[str, Any], *, tested: bool) -> dict[str, Any]:
    """Return what a run with another seed reached; all else must be as in the run that is shipped.

    Args:
        tested: the data have a test split of their own, so that no seed draws one.
    """
    summary = json.loads((run / "summary.json").read_text())
    for key in ("parameters", "epochs", "images", *([] if tested else ["split_seed"])):
        if summary[key] != shipped[key]:
            raise SystemExit(f"{run} differs in {key}: {summary[key]} and {shipped[key]}")
    if summary["seed"] == shipped["seed"]:
        raise SystemExit(f"{run} has the seed of the run that is shipped, {shipped['seed']}")
    facts = {key: summary[key] for key in ("seed", "training_seconds", "threads")}
    return {**facts, "accuracy": summary["test"]["accuracy"]}


def curve(run: Path, figure: str) -> list[float]:
    """Return a figure of the validation images of each epoch in which it was measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [round(row[figure], 4) for row in rows if row.get(figure) is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="MODEL.TAG")
    parser.add_argument("--data", required=True, choices=DATA, dest="tag")
    parser.add_argument("--folder", default=".", help="folder in which the data are")
    parser.add_argument("--command", required=True, help="the command that trained it")
    parser.add_argument("--commit", required=True, help="the commit that trained it")
    parser.add_argument(
        "--seeds", nargs="+", type=Path, default=[], help="runs with other seeds, whose accuracy is told"
    )
    parser.add_argument("--remark", default="", help="what else a reader of the time should know")
    card = ship(**vars(parser.parse_args()))
    shown = ("name", "bytes", "accuracy", "knn_accuracy", "linear_accuracy", "untrained", "part")
    print(json.dumps({key: card[key] for key in shown if key in card}))


if __name__ == "__main__":
    main()
