"""The data of a run, as Lightning takes it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L

from vit_pytorch.data.datasets import ArrayImages, ImageDataset, Splits
from vit_pytorch.data.decode import BadImageError
from vit_pytorch.data.held import are_small, check_holdable, hold
from vit_pytorch.data.loader import ImageLoader, OnBad, StoredLoader, usable_cores
from vit_pytorch.data.sources import open_data
from vit_pytorch.data.stream import StreamImages
from vit_pytorch.data.stream_loader import StreamLoader
from vit_pytorch.data.transforms import UNCHANGED, Augmentation, check_native
from vit_pytorch.data.windows import check_range, measure_window
from vit_pytorch.preprocessing import MEDIA, CropMode, Interpolation, Preprocessing, VideoConfig, VolumeConfig

# images that are read into memory at once
STORED_BATCH = 256


class ImageData(L.LightningDataModule):
    """Labelled images, videos or volumes for training, validation and test.

    Order and augmentation are functions of (seed, epoch, image), the mixing of batches one of (seed, epoch,
    batch): they depend neither on the number of workers nor on where a run was interrupted. With several
    processes each loads its part of every batch, and each evaluation image is loaded once. Lightning adds no
    sampler of its own, whatever ``Trainer(use_distributed_sampler=…)`` says; ``Trainer(overfit_batches=…)``
    does not stop the shuffling.

    A batch is (images, labels): float ``b c h w``, or ``b c t h w`` where there are ``frames``; and integers
    ``b``, or probabilities ``b num_classes`` where a training batch is mixed by MixUp or CutMix. Images are
    mixed within one process's part of a batch, so with mixing, unlike without, two processes do not see what
    one would.

    Args:
        data: What :func:`open_data` opens, or splits that are open already.
        image_size: Height and width of the model's input, or one number for both.
        channels: 1 for grey, 3 for RGB; as the data has it if left out.
        batch_size: Images of one process in one batch.
        workers: Processes that load; 0 loads in the main process, which is fastest for images in memory; None
            for that, and else for one a core, up to 8.
        augmentation: How training images vary; by default not at all.
        mean: Subtracted from values 0 to 1; one, or one per channel.
        std: Divides after that; likewise.
        interpolation: How images are resized.
        crop_pct: Part of the resized height and width that the centre crop of evaluation keeps.
        crop_mode: Whether images keep their aspect ratio before that crop (`center`, `border`) or not
            (`squash`).
        max_tokens: Patches of an image at most, for models that take images of different sizes: images then
            keep their aspect ratio, and a batch is (list of images ``c h w``, labels). None for one size.
        patch_size: Height and width of a patch, where ``max_tokens`` is given.
        frames: Frames of a clip or slices of a volume, for data of videos or volumes.
        video: Which frames of a video are taken.
        volume: How volumes are brought to one intensity and size.
        window: Values of an image's file that become 0 and 255: a range, or `auto` for the one that
            `measure_window` finds in the training images; the whole range of 8 or 16 bits if left out.
        seed: Of order, augmentation and mixing.
        split_seed: Chooses which images are held out where the data is not split by itself.
        val_fraction: Part of each class held out for validation, where the data has no such split.
        test_fraction: Part of each class held out for test, where the data is not split at all.
        worker_timeout: Seconds that a batch may take before its worker counts as hanging.
        on_bad: What happens to an image that cannot be decoded: ``stop`` raises with its path; ``skip``
            leaves it out of its batch, which is then smaller, warns once, and notes it in ``bad``.
        balanced: Whether training shows classes equally often, images with repetition.
        in_memory: Whether images of one size are read once and held in memory; None for small ones, see
            `are_small`.

    Attributes:
        splits: The images, after ``setup``.
        train_size: Height and width of the training images, where they are not the model's input.
        bad: Name and fault of every image that this process has skipped.
        rank: This process, of `world_size`; without a Trainer of Lightning, the training loop sets both.
    """

    def __init__(
        self,
        data: str | Splits = "digits",
        *,
        image_size: int | tuple[int, int] = 224,
        channels: int | None = None,
        batch_size: int = 64,
        workers: int | None = 0,
        augmentation: Augmentation = UNCHANGED,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        interpolation: Interpolation = "bilinear",
        crop_pct: float = 1.0,
        crop_mode: CropMode = "center",
        max_tokens: int | None = None,
        patch_size: tuple[int, int] = (16, 16),
        frames: int | None = None,
        video: VideoConfig | None = None,
        volume: VolumeConfig | None = None,
        window: tuple[float, float] | Literal["auto"] | None = None,
        seed: int = 0,
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        worker_timeout: float = 120.0,
        on_bad: OnBad = "stop",
        balanced: bool = False,
        in_memory: bool | None = None,
    ) -> None:
        super().__init__()
        if on_bad not in ("stop", "skip"):
            raise ValueError(f"on_bad must be 'stop' or 'skip', got {on_bad!r}")
        if max_tokens is not None:
            check_native(augmentation)
        self.data = data
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if augmentation.shift >= min(self.image_size):
            size = " x ".join(map(str, self.image_size))
            raise ValueError(f"shift must be below the image's sides {size}, got {augmentation.shift}")
        self.batch_size = batch_size
        self.workers = workers
        self.augmentation = augmentation
        self.mean = mean
        self.std = std
        self.interpolation: Interpolation = interpolation
        self.crop_pct = crop_pct
        self.crop_mode: CropMode = crop_mode
        self.max_tokens = max_tokens
        self.patch_size = patch_size
        self.frames = frames
        self.video = video or VideoConfig()
        self.volume = volume or VolumeConfig()
        self._window = window
        self._range_checked = False
        self.seed = seed
        self.split_seed = split_seed
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.worker_timeout = worker_timeout
        self.on_bad: OnBad = on_bad
        self.balanced = balanced
        self.in_memory = in_memory
        self.splits: Splits | None = data if isinstance(data, Splits) else None
        self.train_size: tuple[int, int] | None = None
        self.bad: dict[str, str] = {}
        self.rank, self.world_size = 0, 1
        self._channels = channels
        self._loaders: dict[str, ImageLoader] = {}
        self._held: dict[str, ImageDataset] = {}
        self._state: dict[str, Any] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the data, once."""
        if self.splits is None:
            assert isinstance(self.data, str), "splits are kept as they come"
            self.splits = open_data(
                self.data,
                seed=self.split_seed,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
            )

    @property
    def opened(self) -> Splits:
        """The splits, opened if they are not yet."""
        self.setup()
        assert self.splits is not None, "setup opens the data"
        return self.splits

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.opened.classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.opened.classes)

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return self._channels if self._channels is not None else self.opened.train.channels

    @property
    def window(self) -> tuple[float, float] | None:
        """Values of an image's file that become 0 and 255, measured once where that is asked for."""
        if self._window == "auto":
            self._window = measure_window(self._sampled, self.channels)
        assert self._window is None or isinstance(self._window, tuple), "a window is measured or given"
        return self._window

    @property
    def _sampled(self) -> ImageDataset:
        """The images whose values are looked at: those of training, or of a stream those of validation."""
        return self.opened.train if self.opened.train.listed else self.opened.val

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {
            name: len(images)
            for name in ("train", "val", "test")
            if (images := self._split(name)) is not None
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """The model's input, as evaluation and prediction prepare it."""
        return Preprocessing(
            image_size=self.image_size,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            max_tokens=self.max_tokens,
            patch_size=self.patch_size,
            frames=self.frames,
            video=self.video,
            volume=self.volume,
            media=kind if (kind := self.opened.train.kind) in MEDIA else None,
            window=self.window,
        )

    def train_dataloader(self) -> ImageLoader:
        """Return the loader of shuffled, augmented batches; warn of images that use little of their range."""
        if self.frames is None and self.window is None and not self._range_checked:
            check_range(self._sampled, self.channels)
            self._range_checked = True
        loader = self._loader("train", self.augmentation)
        if self._state is not None:
            loader.load_state_dict(self._state)
            self._state = None
        return loader

    def val_dataloader(self) -> ImageLoader:
        """Return the loader of the validation images, each once, in order."""
        return self._loader("val", None)

    def test_dataloader(self) -> ImageLoader:
        """Return the loader of the test images, each once, in order.

        Raises:
            ValueError: The data has no test split.
        """
        return self._loader("test", None)

    def check_evaluation(self) -> None:
        """Read the validation and test images once, so that what is wrong with one is known before training.

        Raises:
            BadImageError: One cannot be decoded, and `on_bad` is `stop`.
        """
        for name in ("val", "test"):
            if not isinstance(self._split(name), ArrayImages | None):
                deque(self._loader(name, None), maxlen=0)

    def predict_dataloader(self) -> ImageLoader:
        """Return the loader of the test images; with their labels, which a prediction step may ignore."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data.

        Lightning saves loaders too, but restores them too late if ``configure_optimizers`` asks for the
        number of steps; it restores data modules before that.
        """
        loader = self._loaders.get("train")
        return {"train": loader.state_dict()} if loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the place at which the next training loader goes on."""
        self._state = state_dict.get("train")

    def _split(self, name: str) -> ImageDataset | None:
        images: ImageDataset | None = getattr(self.opened, name)
        return images

    def workers_for(self, images: ImageDataset) -> int:
        """Return the number of processes that load images."""
        if self.workers is not None:
            return self.workers
        return 0 if isinstance(images, ArrayImages) else min(8, usable_cores())

    def _hold(self, images: ImageDataset) -> ImageDataset:
        """Read images into memory, if they shall be there; return them as they are otherwise.

        Raises:
            ValueError: They cannot be held, and it is asked for.
        """
        if self.in_memory is False or isinstance(images, ArrayImages):
            return images
        prep = self.preprocessing
        try:
            check_holdable(images, prep)
        except ValueError:
            if self.in_memory:
                raise
            return images
        if self.in_memory is None and not are_small(images, prep):
            return images
        options = {"workers": self.workers_for(images), "worker_timeout": self.worker_timeout}
        loader = StoredLoader(images, prep, batch_size=STORED_BATCH, **options)
        try:
            held = hold(images, (batch for batch, _ in loader))
        except BadImageError:
            if self.in_memory or self.on_bad == "stop":
                raise
            return images
        if held is None and self.in_memory:
            raise ValueError("data.in_memory needs images of one size, but theirs differ")
        return images if held is None else held

    def _loader(self, name: str, augmentation: Augmentation | None) -> ImageLoader:
        images = self._split(name)
        if images is None:
            raise ValueError(f"the data has no {name} split; it has {', '.join(self.sizes)}")
        if name not in self._held:
            self._held[name] = self._hold(images)
        images = self._held[name]
        prep = self.preprocessing
        if name == "train" and self.train_size is not None:
            prep = replace(prep, image_size=self.train_size)
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "rank": self.trainer.global_rank if self.trainer is not None else self.rank,
            "world_size": self.trainer.world_size if self.trainer is not None else self.world_size,
            "workers": self.workers_for(images),
            "worker_timeout": self.worker_timeout,
            "on_bad": self.on_bad,
            "bad": self.bad,
        }
        if isinstance(images, StreamImages):
            assert augmentation is not None, "a stream has training images only"
            loader: ImageLoader = StreamLoader(images, prep, augmentation, classes=self.classes, **options)
        else:
            loader = ImageLoader(
                images,
                prep,
                augmentation,
                num_classes=self.num_classes,
                balanced=self.balanced and name == "train",
                **options,
            )
        self._loaders[name] = loader
        return loader
