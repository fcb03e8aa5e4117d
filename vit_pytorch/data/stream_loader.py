"""Reading a stream of shards: the worker's side, and the loader whose epochs are numbers of batches."""

from __future__ import annotations

import os
import random
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from http.client import HTTPException
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vit_pytorch.data.decode import EXTENSIONS, BadImageError, decode_image
from vit_pytorch.data.loader import ImageLoader
from vit_pytorch.data.reader import Batch, LoadingError, channels_last
from vit_pytorch.data.remote import open_shard, reason_of
from vit_pytorch.data.seeding import derive_seed, seeded
from vit_pytorch.data.shards import check_json_label, read_json_label, read_label
from vit_pytorch.data.stream import StreamImages
from vit_pytorch.data.transforms import Augmentation, Preparation, collate, mix_transform
from vit_pytorch.preprocessing import Preprocessing

# samples that a worker shuffles, as they are stored, and how many it has before it gives the first
BUFFER, FIRST = 1000, 100
# names of images left out that are kept, for the summary
MOST_NAMED = 10_000
# shards, or samples, that fail one after the other before a run with `on_bad="skip"` ends, too
MOST_SHARDS, MOST_SAMPLES = 10, 1000
FAILURES = (OSError, tarfile.TarError, HTTPException, EOFError, ValueError, zlib.error)


def is_wanted(member: str) -> bool:
    """Return whether a member of a shard may be an image or a label."""
    extension = os.path.basename(member).partition(".")[2].lower()
    return f".{extension}" in EXTENSIONS or extension in ("cls", "json")


class StreamReader(IterableDataset[Batch]):
    """The worker's side of a stream: shards in, batches out, without an end.

    What a worker draws is a function of (seed, rank, worker, number of samples at the start).

    Args:
        images: The stream.
        prep: The model's input.
        augmentation: How images vary.
        classes: Names of the classes; empty where labels are not read.
        batch_size: Images of a batch.
        seed: Of all randomness.
        rank: This process.
        start: Samples that the training has seen before.
        skip: Whether what cannot be read is left out; or ends the stream.
        reading: Shared memory; row w becomes the process of worker w.
    """

    def __init__(
        self,
        images: StreamImages,
        prep: Preprocessing,
        augmentation: Augmentation,
        *,
        classes: Sequence[str],
        batch_size: int,
        seed: int,
        rank: int,
        start: int,
        skip: bool,
        reading: Tensor,
    ) -> None:
        self.images, self.prep = images, prep
        self.indices = {name: index for index, name in enumerate(classes)}
        self.batch_size = batch_size
        self.keys = (seed, rank, start)
        self.skip = skip
        self.reading = reading
        self.preparation = Preparation(prep, augmentation)
        self.mix = mix_transform(augmentation, len(classes))

    def __iter__(self) -> Iterator[Batch]:
        from webdataset.filters import shuffle

        worker = get_worker_info()
        number = 0
        if worker is not None:
            number = worker.id
            self.reading[number] = torch.tensor([os.getpid(), 0])
        keys = (*self.keys, number)
        bad: list[tuple[str, str]] = []
        order = shuffle(BUFFER, initial=FIRST, rng=random.Random(derive_seed(*keys, 0)))
        images: list[Tensor] = []
        labels: list[int] = []
        seen = in_a_row = 0
        for sample in order(self._samples(derive_seed(*keys, 1), bad)):
            try:
                image, label = self._read(sample)
            except BadImageError as error:
                bad.append((error.name, error.reason))
                in_a_row += 1
                if not self.skip:
                    yield Batch(collate([], self.prep), torch.empty(0), tuple(bad))
                if in_a_row == MOST_SAMPLES:
                    raise LoadingError(
                        f"{in_a_row} samples in a row cannot be used; the last: {error}"
                    ) from error
                continue
            in_a_row = 0
            seen += 1
            with seeded(*keys, 2, seen):
                images.append(self.preparation.single(image))
            labels.append(label)
            if len(images) == self.batch_size:
                with seeded(*keys, 3, seen):
                    batch = self._batch(images, labels, bad)
                images, labels = [], []
                bad.clear()
                yield batch

    def _batch(self, images: list[Tensor], labels: list[int], bad: list[tuple[str, str]]) -> Batch:
        batch, targets = self.preparation.collate(images), torch.tensor(labels)
        if not isinstance(batch, Tensor):
            return Batch(batch, targets, tuple(bad))
        if self.mix is not None:
            batch, targets = self.mix(batch, targets)
        return Batch(channels_last(batch), targets, tuple(bad))

    def _samples(self, seed: int, bad: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of shards drawn at random; note those shards that cannot be read to their end."""
        from webdataset.shardlists import ResampledShards
        from webdataset.tariterators import group_by_keys, tar_file_expander

        names = self.images.names
        shards = ResampledShards(names[:1], deterministic=True, worker_seed=lambda: seed)
        # it draws an index and takes the name there, so that names need not be in memory
        shards.urls = names
        in_a_row = 0
        for shard in shards:
            name, stream = shard["url"], None
            try:
                stream = open_shard(name)
                with stream:
                    source = [{"url": name, "stream": stream}]
                    # one shard at a time: what a broken one began must not be completed by the next
                    last: dict[str, Any] | None = None
                    for sample in group_by_keys(tar_file_expander(source, select_files=is_wanted)):
                        if last is not None:
                            yield last
                        last = sample
                    # tarfile returns a member that is cut off as if it were whole
                    stream.check_end()
                    if last is None:
                        # of such shards alone a stream would never end
                        raise ValueError("it holds no samples")
                    yield last
                in_a_row = 0
            except FAILURES as error:
                reason = reason_of(error) if stream is None else stream.reason(error)
                in_a_row += 1
                if not self.skip:
                    raise LoadingError(f"reading the shard {name} failed: {reason}") from error
                if in_a_row == MOST_SHARDS:
                    what = f"{in_a_row} shards in a row cannot be read; the last, {name}: {reason}"
                    raise LoadingError(what) from error
                bad.append((name, f"the shard cannot be read to its end: {reason}"))

    def _read(self, sample: dict[str, Any]) -> tuple[UInt8[Tensor, "c h w"], int]:
        """Decode the image of a sample, and read its label; -1 where none are read."""
        name = f"{sample['__url__']}:{sample['__key__']}"
        found = [content for extension, content in sample.items() if f".{extension}" in EXTENSIONS]
        if len(found) != 1:
            raise BadImageError(name, f"a sample must have one image member, this one has {len(found)}")
        label = self._label(sample, name) if self.indices else -1
        prep = self.prep
        return decode_image(found[0], channels=prep.channels, name=name, window=prep.window), label

    def _label(self, sample: dict[str, Any], name: str) -> int:
        text: str | None = None
        try:
            if "cls" in sample:
                text = sample["cls"].decode("utf-8", "replace").strip()
            elif "json" in sample:
                text = read_json_label(sample["json"].decode("utf-8", "replace"), name)
            if text is None:
                raise BadImageError(name, "it has no .cls member, nor a .json member with a label")
            label = read_label(text, self.indices, name)
            if "cls" in sample and "json" in sample:
                check_json_label(label, sample["json"].decode("utf-8", "replace"), self.indices, name)
        except BadImageError:
            raise
        except ValueError as error:
            raise BadImageError(name, str(error)) from error
        if label >= len(self.indices):
            raise BadImageError(name, f"its label must be 0 to {len(self.indices) - 1}, got {label}")
        return label


class StreamLoader(ImageLoader):
    """Iterates over batches of a stream, one rank's; an epoch is a number of them.

    One iterator, with its workers, lives through all epochs. Where a training goes on, or an epoch is chosen
    that is not the next one, the stream begins anew, with draws that depend on the number of samples seen
    before.

    Args:
        images: The stream.
        prep: The model's input.
        augmentation: How images vary.
        classes: Names of the classes; empty where labels are not read.
        options: As for `ImageLoader`. Another sample takes the place of one that is left out
            (``on_bad="skip"``).
    """

    def __init__(
        self,
        images: StreamImages,
        prep: Preprocessing,
        augmentation: Augmentation,
        *,
        classes: Sequence[str],
        **options: Any,
    ) -> None:
        super().__init__(images, prep, augmentation, num_classes=len(classes), **options)
        self._make_reader = partial(
            StreamReader, images, prep, augmentation, classes=classes, reading=self._reading
        )
        # the batches of all epochs, counted, and where the one that comes next stands among them
        self._stream: Iterator[Batch] | None = None
        self._next = 0
        self._many = False

    def _batches(self, start: int) -> Iterator[Batch]:
        place = self.sampler.epoch * len(self) + start
        if self._stream is None or self._next != place:
            self._next = place
            plan = self.sampler
            reader = self._make_reader(
                batch_size=plan.global_batch // plan.world_size,
                seed=plan.seed,
                rank=plan.rank,
                start=place * plan.global_batch,
                skip=self.on_bad == "skip",
            )
            self._stream = self._load(reader)
        for batch in self._stream:
            self._next += 1
            yield batch

    def _check(self, batch: Batch, number: int) -> None:
        if len(self.bad) < MOST_NAMED:
            super()._check(batch, number)
        elif batch.bad and self.on_bad == "skip" and not self._many:
            self._many = True
            warnings.warn(
                f"more than {MOST_NAMED} bad images or shards were skipped; further ones are not named",
                stacklevel=3,
            )

    def _describe(self, worker: int) -> str:
        pid, _ = self._reading[worker].tolist()
        return f"data-loader worker {worker} (process {pid}) failed while reading {self.images.name(0)}"
