"""Measure what a stream of shards costs to open, by the number of shards, and train on one over HTTP.

    python benchmarks/streaming.py FOLDER --json docs/measured/streaming.json

FOLDER holds shards `train-00.tar`, `train-01.tar` … with labels, `test-00.tar` and `classes.txt`. A local
server answers for any number of shard names with one of those that there are. Each number of names is a
process of its own: seconds until the names are there and until the first batch is, and the memory that both
add.
"""

from __future__ import annotations

import argparse
import http.server
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

LASTS = ("0", "00099", "99999", "999999999")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers for a shard of any number with one that there is."""

    def do_GET(self) -> None:
        number = int(self.path.rpartition("-")[2].partition(".")[0])
        self.path = f"/train-{number % len(list(Path(self.directory).glob('train-*.tar'))):02}.tar"
        try:
            super().do_GET()
        except ConnectionError:
            # a process that has what it wanted closes the connection
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def open_one(pattern: str, folder: Path) -> dict[str, Any]:
    """Open a stream in this process, and take its first batch."""
    from vit_pytorch.data import ImageData, Splits
    from vit_pytorch.data.remote import ShardNames
    from vit_pytorch.data.shards import read_shards
    from vit_pytorch.data.stream import StreamImages, read_classes

    classes = read_classes(str(folder / "classes.txt"))
    val, _ = read_shards(str(folder / "test-00.tar"), classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    names = ShardNames(pattern)
    splits = Splits(classes=classes, train=StreamImages(names, 10**9), val=val)
    named = time.perf_counter()
    batches = iter(ImageData(splits, image_size=32, batch_size=256, workers=1).train_dataloader())
    next(batches)
    return {
        "shards": len(names),
        "names_seconds": named - start,
        "first_batch_seconds": time.perf_counter() - named,
        "added_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def train(address: str, folder: Path, samples: int, epochs: int) -> dict[str, Any]:
    """Train by the command on a stream over HTTP, with the recipe `light`."""
    last = len(list(folder.glob("train-*.tar"))) - 1
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "vit_pytorch.cli", "train", "--accelerator=cpu", "--workers=1"]
        command += [f"--data=stream:{address}/train-{{00..{last:02}}}.tar", f"--epoch_samples={samples}"]
        command += [f"--data.classes={folder}/classes.txt", f"--data.val={folder}/test-00.tar"]
        command += [f"--epochs={epochs}", f"--output={place}/run", "--logger=none"]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(ran.stderr)
        summary = json.loads(Path(place, "run", "summary.json").read_text(encoding="utf-8"))
    return {
        "epochs": epochs,
        "epoch_samples": samples,
        "seconds": summary["training_seconds"],
        "validation_accuracy": summary["val"]["accuracy"],
        "validation_images": summary["val"]["images"],
        "skipped": len(summary["skipped_images"]),
    }


def main() -> None:
    """Measure and print a row a number of shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=10_000, help="of an epoch of the training")
    parser.add_argument("--epochs", type=int, default=3, help="0 for no training")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(open_one(args.one, args.folder)))
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(args.folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    rows: list[dict[str, Any]] = []
    for last in LASTS:
        pattern = f"{address}/shard-{{{'0' * len(last)}..{last}}}.tar"
        command = [sys.executable, __file__, str(args.folder), "--one", pattern]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(ran.stdout))
        print(json.dumps(rows[-1]), flush=True)
    found: dict[str, Any] = {"opening": rows}
    if args.epochs:
        found["training"] = train(address, args.folder, args.samples, args.epochs)
        print(json.dumps(found["training"]))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
