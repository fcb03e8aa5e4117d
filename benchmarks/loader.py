"""Measure how many images a second training loaders prepare, beside a bare loop that only decodes them.

    python benchmarks/loader.py --shards 'FOLDER/train-*.tar' --json docs/measured/loader.json

Sources: 1,000 JPEG files of about 500 x 400 pixels, made of scikit-image's photographs in a temporary folder,
loaded at 224 x 224; and images of the shards, which peers read as the same bytes in files, at 32 x 32. Each
loader decodes, crops, flips, applies RandAugment (except with `--light`), normalises and collates, with as
many workers as the bare loop has processes. Each is a process of its own; all take turns in one run, and a
round's rates are compared. The bare loop reads and decodes to RGB by Pillow, and throws away what it has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from provenance import provenance
from timing import Cell, Worker, ratio, time_in_turn

HERE = Path(__file__).parent
BARE, OURS = "bare decoding", "ours"
# libraries, by the package that they need
LIBRARIES = {
    BARE: "PIL",
    OURS: "vit_pytorch",
    "torchvision": "torchvision",
    "timm": "timm",
    "lightly": "lightly",
}
PHOTOGRAPHS = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "retina.jpg",
)
MEAN = STD = (0.5, 0.5, 0.5)


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEG files of about 500 x 400 pixels: parts of photographs, in two classes."""
    import skimage
    from PIL import Image

    draw = torch.Generator().manual_seed(0)
    sources = [
        Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in PHOTOGRAPHS
    ]
    for number in range(count):
        image = sources[number % len(sources)]
        wide, high, x, y = torch.rand(4, generator=draw).tolist()
        size = (450 + round(100 * wide), 360 + round(80 * high))
        factor = 0.9 * min(image.width / size[0], image.height / size[1])
        box = [factor * side for side in size]
        left, top = x * (image.width - box[0]), y * (image.height - box[1])
        part = image.resize(size, box=(left, top, left + box[0], top + box[1]))
        place = folder / str(number % 2)
        place.mkdir(exist_ok=True)
        part.save(place / f"{number:04}.jpg", quality=90)


def write_members(folder: Path, pattern: str, count: int) -> None:
    """Write the images of shards as files, in a folder for each class, the same bytes."""
    from vit_pytorch.data.shards import read_shards

    images, classes = read_shards(pattern)
    chosen = torch.arange(min(count, len(images))) * len(images) // min(count, len(images))
    for place, index in enumerate(chosen.tolist()):
        target = folder / classes[int(images.labels[index])]
        target.mkdir(exist_ok=True)
        with images.stored(index) as file:
            (target / f"{place:06}.jpg").write_bytes(file.read())


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder of classes."""
    return sorted(folder.glob("*/*.jpg"))


def decode_all(files: list[Path], barrier: Any) -> None:
    """Decode files in a plain loop."""
    from PIL import Image

    barrier.wait()
    for file in files:
        with file.open("rb") as opened:
            Image.open(BytesIO(opened.read())).convert("RGB")


def time_bare(files: list[Path], count: int, workers: int) -> float:
    """Return the seconds in which so many processes decode so many images."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(workers + 1)
    chosen = (files * -(-count // len(files)))[:count]
    processes = [
        context.Process(target=decode_all, args=(chosen[number::workers], barrier))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def our_batches(args: argparse.Namespace) -> Iterator[Any]:
    """Yield batches of ours, epoch after epoch; small images are read before, as they are in a run."""
    from vit_pytorch.data import Augmentation, ImageData, Splits, open_data
    from vit_pytorch.data.held import HeldImages

    source = f"wds:{args.pattern}" if args.pattern else str(args.folder)
    splits = open_data(source, val_fraction=0.001, test_fraction=0)
    options: dict[str, Any] = {
        "image_size": args.size,
        "batch_size": args.batch,
        "workers": args.workers,
        "augmentation": Augmentation(
            crop_scale=(0.08, 1.0), flip=0.5, rand_augment=0 if args.light else 2, rand_augment_magnitude=9
        ),
        "mean": MEAN,
        "std": STD,
    }
    loader = ImageData(splits, **options).train_dataloader()
    if not isinstance(loader.images, HeldImages):
        loader = ImageData(
            Splits(splits.classes, repeated(splits.train), splits.val), **options
        ).train_dataloader()
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def repeated(images: Any) -> Any:
    """Return images many times over, so that an epoch has no end while it is timed."""
    return images.subset(torch.arange(len(images)).repeat(-(-1_000_000 // len(images))))


def torchvision_transform(args: argparse.Namespace) -> Any:
    """Return the transform of torchvision's own training reference."""
    from torchvision import transforms as T

    steps = [T.RandomResizedCrop(args.size, antialias=True), T.RandomHorizontalFlip()]
    steps += [] if args.light else [T.RandAugment(2, 9, interpolation=T.InterpolationMode.BILINEAR)]
    return T.Compose([*steps, T.PILToTensor(), T.ConvertImageDtype(torch.float), T.Normalize(MEAN, STD)])


def plain_batches(dataset: Any, args: argparse.Namespace) -> Iterator[Any]:
    """Yield batches of a dataset by PyTorch's loader."""
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10_000_000)
    return iter(
        torch.utils.data.DataLoader(dataset, batch_size=args.batch, sampler=sampler, num_workers=args.workers)
    )


def torchvision_batches(args: argparse.Namespace) -> Iterator[Any]:
    """Yield batches of torchvision's folder."""
    from torchvision.datasets import ImageFolder

    return plain_batches(ImageFolder(str(args.folder), torchvision_transform(args)), args)


def lightly_batches(args: argparse.Namespace) -> Iterator[Any]:
    """Yield batches of lightly's folder, by torchvision's transform."""
    from lightly.data import LightlyDataset

    return plain_batches(LightlyDataset(str(args.folder), transform=torchvision_transform(args)), args)


def timm_batches(args: argparse.Namespace) -> Iterator[Any]:
    """Yield batches of timm's loader on a processor."""
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    dataset: Any = create_dataset("", str(args.folder))
    dataset.reader.samples *= -(-1_000_000 // len(dataset.reader.samples))
    return iter(
        create_loader(
            dataset,
            input_size=(3, args.size, args.size),
            batch_size=args.batch,
            is_training=True,
            no_aug=False,
            color_jitter=0.0,
            auto_augment=None if args.light else "rand-m9-n2",
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=args.workers,
            use_prefetcher=False,
            persistent_workers=False,
            device=torch.device("cpu"),
        )
    )


LOADERS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    OURS: our_batches,
    "torchvision": torchvision_batches,
    "timm": timm_batches,
    "lightly": lightly_batches,
}


def work(args: argparse.Namespace) -> None:
    """Answer requests on standard input until it closes: the seconds of so many batches."""
    # whatever libraries print is no answer
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    batches = None if args.one == BARE else LOADERS[args.one](args)
    files = files_in(args.folder)
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        seconds = []
        for _ in range(steps):
            if batches is None:
                seconds.append(time_bare(files, args.count, args.workers))
                continue
            # what was fetched ahead while others had their turn, and a little more
            for _ in range(2 * args.workers + 2):
                next(batches)
            start = time.perf_counter()
            for _ in range(args.count // args.batch):
                next(batches)
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def compare(args: argparse.Namespace, folder: Path, *, size: int, pattern: str | None) -> dict[str, Any]:
    """Time all loaders on one source, in turn."""
    common = ["--folder", str(folder), "--size", str(size), "--workers", str(args.workers)]
    common += ["--batch", str(args.batch), "--count", str(args.count)]
    common += ["--light"] if args.light else []
    workers = {}
    for name, package in LIBRARIES.items():
        if name in args.only and find_spec(package) is not None:
            own = ["--pattern", pattern] if pattern and name == OURS else []
            workers[name] = Worker(__file__, "--one", name, *common, *own, path=HERE.parent)
    cell = Cell("load", "float32", args.batch)
    times, _ = time_in_turn(workers, cell, args.rounds)
    for worker in workers.values():
        worker.close()
    rates = {name: [args.count / seconds for seconds in found] for name, found in times.items()}
    return {
        "size": size,
        "images_per_second": {name: median(found) for name, found in rates.items()},
        # shares of one round's bare loop, and of the others' rates
        "ours_by": {
            name: asdict(ratio(times[name], times[OURS])) for name in times if name != OURS and OURS in times
        },
        "seconds": times,
    }


def main() -> None:
    """Make the sources, compare, and print a table a source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", help="pattern of WebDataset shards of small images")
    parser.add_argument("--images", type=int, default=1000, help="JPEG files that are made; default 1000")
    parser.add_argument("--workers", type=int, help="default one a core")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=1024, help="images that a round times")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--light", action="store_true", help="without RandAugment")
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    for name in ("--one", "--pattern"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        work(args)
        return
    # not at the top: a process of another library does without this package
    from vit_pytorch.data.loader import usable_cores

    args.workers = usable_cores() if args.workers is None else args.workers
    absent = [name for name, package in LIBRARIES.items() if find_spec(package) is None]
    settings: dict[str, Any] = {
        "workers": args.workers,
        "batch": args.batch,
        "rand_augment": not args.light,
        "versions": {
            name: version(name) for name in ("torchvision", "pillow", *LIBRARIES) if is_version(name)
        },
        **provenance(),
    }
    rows: list[dict[str, Any]] = []
    if absent:
        print(f"not installed, and left out: {', '.join(absent)}")
    with tempfile.TemporaryDirectory() as place:
        sources: dict[str, tuple[int, str | None]] = {"photographs": (224, None)}
        (photographs := Path(place, "photographs")).mkdir()
        write_photographs(photographs, args.images)
        if args.shards:
            (members := Path(place, "shards")).mkdir()
            write_members(members, args.shards, 10_000)
            sources["shards"] = (32, args.shards)
        for name, (size, pattern) in sources.items():
            row = compare(args, Path(place, name), size=size, pattern=pattern)
            rows.append({"source": name, **row, **settings})
            print(f"{name}, at {size} x {size}:")
            for library, rate in row["images_per_second"].items():
                beside = row["ours_by"].get(library)
                share = f"  ours {beside['value']:.2f} (+- {beside['spread']:.2f})" if beside else ""
                print(f"  {library:14} {rate:8.0f} images/s{share}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def is_version(name: str) -> bool:
    """Return whether a name is that of something installed."""
    return find_spec({"pillow": "PIL"}.get(name, name)) is not None and name not in (BARE, OURS)


if __name__ == "__main__":
    main()
