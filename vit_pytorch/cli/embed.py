"""`vit embed`: features of images as a file of arrays or a Parquet table."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from torch import Tensor

from vit_pytorch.cli.explain import as_utf_8
from vit_pytorch.cli.functions import call
from vit_pytorch.cli.layers import UsageError
from vit_pytorch.cli.use import BadFiles
from vit_pytorch.create import open_model
from vit_pytorch.data.loader import check_workers
from vit_pytorch.data.reader import LoadingError
from vit_pytorch.data.transforms import collate, move
from vit_pytorch.extras import install_command
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.preprocessing import eval_transform, preprocessing_for
from vit_pytorch.storage import replacing
from vit_pytorch.training.evaluation import check_outputs
from vit_pytorch.training.features import Features, check_features, compute_features
from vit_pytorch.training.predictor import prepared_batches, put_on_device
from vit_pytorch.training.runs import check_creatable


def embed(arguments: Sequence[str]) -> None:
    """Parse the options of `vit embed` and run it."""
    call(write_features, "embed", arguments, positional=["model", "images"], several="images")


def write_features(
    model: str,
    images: list[str],
    output: str,
    features: Features = "pooled",
    batch_size: int = 64,
    workers: int = 0,
    on_bad: Literal["report", "skip", "stop"] = "report",
    as_json: bool = False,
) -> None:
    """Write the features of images, with their paths, batch by batch.

    Args:
        model: Folder of a run or of a model, with or without a classifier; or the name of a model, for its
            published weights.
        images: Files, folders or patterns.
        output: The file, in a folder that is made if need be: `.npz` with the arrays `paths` and
            `features`, or `.parquet` with these columns.
        features: `pooled` for what enters the classifier; after the final norm, `cls` for the class token,
            `mean` for the mean of the patches, `patches` for a row each patch, `maps` for these as maps
            (width, rows, columns).
        batch_size: Images that the model sees at once.
        workers: Processes that read images.
        on_bad: As for `vit predict`.
        as_json: Print JSON instead of a line.

    Raises:
        FileNotFoundError: Where there is no model or no such image.
        ImportError: Where pyarrow is not installed, for Parquet.
        ValueError: Where the model has no such features, takes no images of one size, or gives values that
            are not finite.
        SystemExit: With status 3 where files could not be decoded.
    """
    writers: dict[str, Callable[[Path], Writer]] = {".npz": NpzWriter, ".parquet": ParquetWriter}
    if Path(output).suffix.lower() not in writers:
        raise UsageError(f"--output must end in {' or '.join(writers)}, got {output}")
    check_integer("batch_size", batch_size)
    check_workers(workers)
    check_creatable(Path(output).parent)
    net = put_on_device(open_model(model))
    prep = preprocessing_for(net)
    if prep.frames is not None or prep.max_tokens is not None:
        raise ValueError(f"features are those of images of one size, which {model} does not take")
    check_features(net, features)
    device, bad, count = next(net.parameters()).device, BadFiles(on_bad), 0
    shape: list[int] = []
    batches = prepared_batches(
        images, prep, eval_transform(prep), batch_size=batch_size, workers=workers, on_bad=bad
    )
    with replacing(output) as file, writers[Path(output).suffix.lower()](file) as writer, torch.no_grad():
        for names, prepared in batches:
            found = compute_features(net, move(collate(prepared, prep), device), features).float()
            check_outputs(found.flatten(1))
            writer.write(names, found.cpu())
            count, shape = count + len(names), list(found.shape[1:])
        if not count:
            raise LoadingError("none of the images could be decoded")
    if as_json:
        from vit_pytorch.cli.tables import print_json

        print_json({"output": output, "images": count, "shape": shape})
    else:
        print(f"{output}: {features} features of {count} images, {' x '.join(map(str, shape))} each")
    bad.leave()


class Writer(Protocol):
    """Writes features as they come; a context manager."""

    def __enter__(self) -> Writer: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def write(self, names: Sequence[str], features: Float[Tensor, "b *n d"]) -> None:
        """Write the features of a batch."""


class NpzWriter:
    """Writes the arrays `paths` and `features` into a `.npz` file; only names are held in memory.

    Features are kept beside the file until their number, which the array's header says, is known.

    Args:
        file: the file
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: list[str] = []
        self.shape: tuple[int, ...] = ()
        self._held = ExitStack()

    def __enter__(self) -> NpzWriter:
        self.rows: IO[bytes] = self._held.enter_context(tempfile.TemporaryFile(dir=self.file.parent))
        return self

    def write(self, names: Sequence[str], features: Float[Tensor, "b *n d"]) -> None:
        """Write the features of a batch."""
        self.names += names
        self.shape = tuple(features.shape[1:])
        self.rows.write(features.contiguous().numpy().astype("<f4", copy=False).tobytes())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._held:
            if kind is not None:
                return
            self.rows.seek(0)
            with zipfile.ZipFile(self.file, "w", allowZip64=True) as archive:
                with archive.open("features.npy", "w", force_zip64=True) as member:
                    shape = (len(self.names), *self.shape)
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    npy.write_array_header_2_0(member, header)
                    shutil.copyfileobj(self.rows, member)
                with archive.open("paths.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, np.array(self.names, dtype=np.str_), allow_pickle=False)


class ParquetWriter:
    """Writes the columns `path` and `features` into a Parquet file; of patches one row after the other.

    Args:
        file: the file
    """

    def __init__(self, file: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f"Parquet files need pyarrow: {install_command('data')}") from error
        self.arrow, self.file = pyarrow, file
        self._writer: Any = None

    def __enter__(self) -> ParquetWriter:
        return self

    def write(self, names: Sequence[str], features: Float[Tensor, "b *n d"]) -> None:
        """Write the features of a batch.

        Raises:
            ValueError: If a name is no UTF-8.
        """
        arrow, flat = self.arrow, features.flatten(1)
        for name in names:
            if as_utf_8(name) != name:
                raise ValueError(
                    f"Parquet holds names in UTF-8, which {as_utf_8(name)} is not: write a file *.npz instead"
                )
        if self._writer is None:
            kind = arrow.list_(arrow.float32(), flat.shape[1])
            # how a row is to be read where it is more than one vector
            notes = {"shape": " ".join(map(str, features.shape[1:]))}
            schema = arrow.schema([("path", arrow.string()), ("features", kind)], metadata=notes)
            self._writer = arrow.parquet.ParquetWriter(self.file, schema)
        values = arrow.FixedSizeListArray.from_arrays(
            arrow.array(flat.contiguous().numpy().ravel()), flat.shape[1]
        )
        columns = [arrow.array(list(names)), values]
        self._writer.write_table(arrow.Table.from_arrays(columns, schema=self._writer.schema))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
