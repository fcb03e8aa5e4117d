"""A loader whose batches are a function of (seed, epoch, batch), so that it can stop and go on anywhere.

Each request to a worker says everything that its answer depends on. So the number of workers changes nothing,
workers have no state to save, batches fetched ahead are not lost, and going on from batch k is asking for
batch k.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vit_pytorch.data.datasets import ImageDataset
from vit_pytorch.data.decode import BadImageError
from vit_pytorch.data.plan import BatchPlan, BatchRequest
from vit_pytorch.data.reader import Batch, BatchReader, LoadingError
from vit_pytorch.data.transforms import AsStored, Augmentation, Images
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.preprocessing import Preprocessing

OnBad = Literal["stop", "skip"]
# each is a process with a memory of its own
MOST_WORKERS = 256


def usable_cores() -> int:
    """Return the number of cores that this process may use; in a container or a job often not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(workers: int) -> None:
    """Check a number of processes that load images; warn, once, if they are more than the usable cores.

    Raises:
        ValueError: It is no integer, negative, or more than a machine bears.
    """
    check_integer("workers", workers, least=0, most=MOST_WORKERS)
    if workers > usable_cores():
        _warn_of_workers(workers, usable_cores())


@cache
def _warn_of_workers(workers: int, cores: int) -> None:
    warnings.warn(f"workers: {workers}, usable cores: {cores}; fewer workers may be faster", stacklevel=3)


class QuietDataLoader(DataLoader[Any]):
    """PyTorch's loader without its warning of many workers, twice at each start: `check_workers` says it."""

    def check_worker_number_rationality(self) -> None:
        """Leave the check out."""


class ImageLoader:
    """Iterates over batches (images, labels) of one rank; one iteration is one epoch, or what is left of it.

    Outside Lightning, call ``loader.sampler.set_epoch(epoch)`` before each epoch.

    Args:
        images: What is loaded.
        prep: The model's input.
        augmentation: For training, which shuffles and drops what does not fill a batch; None for evaluation.
        batch_size: Images of one rank in one batch.
        num_classes: Number of classes.
        seed: Of order and augmentation.
        rank: This process, of ``world_size``.
        world_size: Number of processes.
        workers: Processes that load; 0 loads in this one.
        worker_timeout: Seconds that a batch may take before a worker counts as hanging (with ``workers >
            0``).
        on_bad: Whether an image that cannot be decoded stops the run, or is left out of its batch, with a
            warning and a note in ``bad``.
        balanced: Whether training shows classes equally often, images with repetition.
        bad: Where skipped images are noted; loaders that share it warn of each once.

    Attributes:
        sampler: The plan of batches; Lightning tells it the epoch.
        batch_sampler: None, as in a ``DataLoader`` whose sampler yields whole batches.
        bad: Name and fault of every image that this process has skipped.
    """

    def __init__(
        self,
        images: ImageDataset,
        prep: Preprocessing,
        augmentation: Augmentation | None,
        *,
        batch_size: int,
        num_classes: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        worker_timeout: float = 120.0,
        on_bad: OnBad = "stop",
        balanced: bool = False,
        bad: dict[str, str] | None = None,
    ) -> None:
        if images.axes != len(prep.size):
            raise ValueError(
                f"the model takes {' x '.join(map(str, prep.size))}, which {images.kind}s do not have: "
                f"they have {images.axes} axes"
            )
        check_workers(workers)
        if worker_timeout <= 0:
            raise ValueError(f"worker_timeout must be positive, got {worker_timeout}")
        self.images = images
        self.workers = workers
        self.worker_timeout = worker_timeout
        self.on_bad = on_bad
        self.bad = {} if bad is None else bad
        self.sampler = BatchPlan(
            images,
            batch_size=batch_size,
            train=augmentation is not None,
            seed=seed,
            rank=rank,
            world_size=world_size,
            balanced=balanced,
        )
        self.batch_sampler = None
        self._reading = torch.full((max(1, workers), 2), -1).share_memory_()
        self._reader = BatchReader(
            images, prep, augmentation, num_classes=num_classes, seed=seed, reading=self._reading
        )
        self._done = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Images, Shaped[Tensor, "b *k"]]]:
        # A generator begins at the first batch, not before: Lightning calls iter() ahead of set_epoch().
        start = self._resume[1] if self._resume is not None and self._resume[0] == self.sampler.epoch else 0
        self._resume = None
        self._done = start
        batches = self._batches(start)
        for number in range(start, len(self)):
            with self._failures_named((number - start) % max(1, self.workers)):
                batch = next(batches)
            self._check(batch, number)
            self._done = number + 1
            yield batch.images, batch.labels

    def _batches(self, start: int) -> Iterator[Batch]:
        """Return the batches of the epoch from one on."""
        return self._load(self._reader, sampler=_Requests(self.sampler, start))

    def _load(self, source: Dataset[Batch], **options: Any) -> Iterator[Batch]:
        return iter(
            QuietDataLoader(
                source,
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=self.workers,
                timeout=self.worker_timeout if self.workers else 0,
                pin_memory=torch.cuda.is_available(),
                # Its own generator: a new iterator must not move the global one, on which dropout depends.
                generator=torch.Generator(),
                **options,
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the place reached: the epoch, how many of its batches were handed out, what defines them."""
        epoch, done = self._resume if self._resume is not None else (self.sampler.epoch, self._done)
        return {"epoch": epoch, "batch": done, "plan": self._plan()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place: the next iteration of its epoch begins with the first batch not handed out.

        Raises:
            ValueError: The place is within an epoch whose batches are not those of this loader.
        """
        mine, theirs = self._plan(), state["plan"]
        if 0 < state["batch"] < theirs["batches"] and mine != theirs:
            changed = ", ".join(
                f"{key} was {theirs[key]} and is {mine[key]}" for key in mine if mine[key] != theirs[key]
            )
            raise ValueError(
                f"the checkpoint stopped after batch {state['batch']} of {theirs['batches']} in epoch "
                f"{state['epoch']}; going on there needs the same batches, but {changed}"
            )
        self._resume = (state["epoch"], min(state["batch"], len(self)))

    def _plan(self) -> dict[str, int]:
        return {
            "images": len(self.images),
            "global batch size": self.sampler.global_batch,
            "seed": self.sampler.seed,
            "batches": len(self),
        }

    def _check(self, batch: Batch, number: int) -> None:
        for name, reason in batch.bad:
            if self.on_bad == "stop":
                raise BadImageError(name, reason, self.images.kind)
            if name not in self.bad:
                warnings.warn(f"skipped bad {self.images.kind} {name}: {reason}", stacklevel=3)
            self.bad[name] = reason
        if not len(batch.images):
            raise ValueError(
                f"batch {number} of epoch {self.sampler.epoch} is empty: "
                f"all {len(batch.bad)} {self.images.kind}s are bad"
            )

    @contextmanager
    def _failures_named(self, awaited: int) -> Iterator[None]:
        """Add to the error of a dead or hanging worker which one it is and what it was reading."""
        try:
            yield
        except RuntimeError as error:
            text = str(error).strip()
            if raised := re.match(r"Caught LoadingError in DataLoader worker process (\d+)", text):
                # what the worker said is at the end of its traceback
                said = text.splitlines()[-1].partition(": ")[2]
                raise LoadingError(f"data-loader worker {raised[1]}: {said}") from error
            if self.workers == 0 or not text.startswith("DataLoader "):
                raise
            pids = {int(number) for number in re.findall(r"\d+", text)}
            dead = [worker for worker, (pid, _) in enumerate(self._reading.tolist()) if pid in pids]
            described = "; ".join(self._describe(worker) for worker in dead or [awaited])
            raise LoadingError(f"{described}: {' '.join(text.split())}") from error

    def _describe(self, worker: int) -> str:
        pid, index = self._reading[worker].tolist()
        if pid < 0:
            return f"data-loader worker {worker} had not begun to read"
        return f"data-loader worker {worker} (process {pid}) failed while reading {self.images.name(index)}"


class StoredLoader(ImageLoader):
    """Iterates over images as they are stored, each once and in order: bytes, or lists where sizes differ."""

    def __init__(self, images: ImageDataset, prep: Preprocessing, **options: Any) -> None:
        super().__init__(images, prep, None, num_classes=0, **options)
        self._reader.preparation = AsStored()


class _Requests(Sampler[BatchRequest]):
    """The requests of an epoch from a batch on, made as they are needed: a list of them all takes 40 bytes an
    image."""

    def __init__(self, plan: BatchPlan, start: int) -> None:
        self.plan, self.start = plan, start

    def __iter__(self) -> Iterator[BatchRequest]:
        return self.plan.requests(self.start)


def _unchanged(batch: Any) -> Any:
    return batch
