"""Files with random damage are read as what they are, or refused by the error that their reader promises.

Some examples by default, always the same; `make fuzz` takes others, and more.
"""

import gzip
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from vit_pytorch.cli.layers import UsageError, read_layer
from vit_pytorch.cli.train import read_command
from vit_pytorch.create import read_config
from vit_pytorch.data import BadImageError, decode_image, read_record
from vit_pytorch.data.idx import read_idx
from vit_pytorch.data.record import ImageRecord, RecordedImage
from vit_pytorch.data.shards import read_shards
from vit_pytorch.data.tables import read_table
from vit_pytorch.data.video import VideoReader
from vit_pytorch.data.volumes import decode_volume
from vit_pytorch.preprocessing import Preprocessing, VolumeConfig
from vit_pytorch.pretrained.files import read_weights
from vit_pytorch.registry import find_entry
from vit_pytorch.training.config import config_text
from vit_pytorch.training.history import read_rows, write_rows
from vit_pytorch.training.predictor import Predictor
from vit_pytorch.training.problems import Classification
from vit_pytorch.training.saved import SavedClassifier, save_classifier

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 20,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# of what takes a second each
slow_fuzz = settings(fuzz, max_examples=max(3, EXAMPLES // 100))
# where (a share of the file), how many bytes go, and what comes instead
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from([0, 1, 1, 2, 4, 8, 10**9]),
        st.one_of(st.binary(max_size=8), st.just(b"\xff" * 8)),
    ),
    min_size=1,
    max_size=4,
)
Edits = list[tuple[float, int, bytes]]


def damage(content: bytes, edits: Edits) -> bytes:
    for share, gone, new in edits:
        place = int(share * len(content))
        content = content[:place] + new + content[place + gone :]
    return content


def check(
    write: Callable[[Path], Any],
    read: Callable[[Path], Any],
    name: str,
    edits: Edits,
    folder: Path,
    promised: type[Exception] | tuple[type[Exception], ...] = ValueError,
) -> None:
    """Damage what `write` writes, and read it."""
    file = folder / name
    write(file)
    read(file)
    file.write_bytes(damage(file.read_bytes(), edits))
    with suppress(promised):
        read(file)


def write_image(file: Path) -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8)
    if file.suffix == ".npy":
        np.save(file, pixels)
    else:
        Image.fromarray(pixels).save(file)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "npy"])
@pytest.mark.filterwarnings("ignore")
@fuzz
@given(edits=EDITS)
def test_images(ending: str, edits: Edits, tmp_path: Path) -> None:
    """Images of seven formats.

    Here: decoded, or a bad image
    Others: of 600 files of six formats, torchvision's `default_loader` read 182; the others ended in
        `OSError` (410), `SyntaxError` (5) and `DecompressionBombError` (3)
    """
    check(write_image, decode_image, f"x.{ending}", edits, tmp_path, BadImageError)


STATE = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4)}


@fuzz
@given(edits=EDITS)
def test_safetensors(edits: Edits, tmp_path: Path) -> None:
    """Safetensors.

    Here: read, or refused by name
    Others: of 200 files, timm's `load_checkpoint` took 9; the others ended in `SafetensorError`
    """
    check(lambda file: save_file(STATE, file), read_weights, "x.safetensors", edits, tmp_path)


@pytest.mark.filterwarnings("ignore")
@fuzz
@given(edits=EDITS)
def test_pickles(edits: Edits, tmp_path: Path) -> None:
    """PyTorch's pickles.

    Here: read, or refused by name; nothing is executed
    Others: of 200 files, timm's `load_checkpoint` took 6; the others ended in `RuntimeError` and `OSError`;
        what would execute code is refused
    """
    check(lambda file: torch.save(STATE, file), read_weights, "x.pt", edits, tmp_path)


@fuzz
@given(edits=EDITS)
def test_numpy_archives(edits: Edits, tmp_path: Path) -> None:
    """`.npz`.

    Here: read, or refused by name
    Others: of 200 files, NumPy, by which timm reads them, read 5; the others ended in `BadZipFile`,
        `OSError` and `ValueError`
    """
    check(lambda file: np.savez(file, a=np.ones(3)), read_weights, "x.npz", edits, tmp_path)


@fuzz
@given(edits=EDITS)
def test_configurations_of_runs(edits: Edits, tmp_path: Path) -> None:
    """Settings in YAML.

    Here: read, or refused by name
    """
    text = "model: {name: vit_tiny_patch16_224, dim: 32}\ndata:\n  source: digits\nepochs: 3\n"
    check(lambda file: file.write_text(text), read_layer, "x.yaml", edits, tmp_path, UsageError)


@fuzz
@given(edits=EDITS)
def test_configurations_of_models(edits: Edits, tmp_path: Path) -> None:
    """`config.json` of a model.

    Here: read, or refused by name
    Others: of 200 files, transformers took 2; the others ended in `OSError`
    """
    config = {"architecture": "ViT", "dim": 32, "default_cfg": {"mean": [0.5], "label_names": ["a"]}}
    write = lambda file: file.write_text(json.dumps(config))  # noqa: E731
    check(write, lambda file: read_config(file.parent), "config.json", edits, tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
@fuzz
@given(edits=EDITS)
def test_idx(ending: str, edits: Edits, tmp_path: Path) -> None:
    """IDX, gzipped or not.

    Here: read, or refused by name
    Others: of 300 files, torchvision's reader of MNIST read 15; the others ended in `RuntimeError`,
        `AssertionError` and `ValueError`
    """
    content = struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 4) + bytes(range(32))
    content = gzip.compress(content, mtime=0) if ending else content
    write = lambda file: file.write_bytes(content)  # noqa: E731
    check(write, lambda file: read_idx(file, ndim=3), f"x{ending}", edits, tmp_path)


def write_shard(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        for i in range(3):
            image = io.BytesIO()
            Image.new("L", (4, 4), i).save(image, "png")
            for ending, content in (("png", image.getvalue()), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore")
@fuzz
@given(edits=EDITS)
def test_shards(edits: Edits, tmp_path: Path) -> None:
    """Shards in tar files.

    Here: read, or refused by name
    Others: of 200 files, webdataset read 158 without a word, 145 of them with fewer or other samples;
        the others ended in `ReadError`
    """
    check(write_shard, lambda file: read_shards(str(file)), "x.tar", edits, tmp_path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.filterwarnings("ignore")
@fuzz
@given(edits=EDITS)
def test_volumes(ending: str, edits: Edits, tmp_path: Path) -> None:
    """NIfTI, gzipped or not.

    Here: read, or refused by name; headers that ask for any amount of memory are refused
    Others: of 200 uncompressed files, nibabel read 30, 24 of them with other voxels; the others ended
        in `ImageFileError` (162), `OSError`, `ValueError` and `HeaderDataError`
    """
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    content = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()
    if ending == ".nii.gz":
        content = gzip.compress(content, mtime=0)
    write = lambda file: file.write_bytes(content)  # noqa: E731
    config = VolumeConfig(spacing=(4.0, 2.0, 2.0))
    read = lambda file: decode_volume(file, config, (4, 8, 8)).shape  # noqa: E731
    check(write, read, f"x{ending}", edits, tmp_path, BadImageError)


@fuzz
@given(edits=EDITS)
def test_tables(edits: Edits, tmp_path: Path) -> None:
    """Tables of images.

    Here: read, or refused by name
    Others: of 200 files, `pandas.read_csv` read 9; the others ended in `UnicodeDecodeError` (185) and
        `ParserError`
    """
    for i in range(3):
        (tmp_path / f"{i}.png").touch()
    text = "image,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,val\n"
    check(lambda file: file.write_text(text), read_table, "x.csv", edits, tmp_path)


@fuzz
@given(edits=EDITS)
def test_parquet(edits: Edits, tmp_path: Path) -> None:
    """Tables of images in Parquet.

    Here: read, or refused by name
    Others: of 200 files, `pandas.read_parquet` read 1; the others ended in `OSError` (141) and
        `ArrowInvalid`
    """
    for i in range(3):
        (tmp_path / f"{i}.png").touch()
    rows = pandas.DataFrame({"image": ["0.png", "1.png", "2.png"], "label": ["a", "b", "a"]})
    check(rows.to_parquet, read_table, "x.parquet", edits, tmp_path)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A film of twelve frames."""
    films = pytest.importorskip("tests.training.films")
    path = films.write_film(tmp_path_factory.mktemp("film") / "x.mp4", films.numbered(12, (16, 16)), gop=4)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore")
@fuzz
@given(edits=EDITS)
def test_videos(edits: Edits, tmp_path: Path, film: bytes) -> None:
    """Videos.

    Here: decoded, or a bad video
    Others: of 200 files, PyAV decoded 19, 14 of them to fewer or other frames; the others ended in
        `InvalidDataError` (162), `IndexError` and `DecoderNotFoundError`
    """

    def read(file: Path) -> None:
        with VideoReader(file) as reader:
            reader.read([0, reader.count // 2, reader.count - 1])

    check(lambda file: file.write_bytes(film), read, "x.mp4", edits, tmp_path, BadImageError)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**12), 10**12),
        st.floats(),
        st.text(max_size=5),
        st.just([]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["kind", "mean", "task", "depth", "x"]), inner, max_size=3),
    ),
    max_leaves=5,
)
# which setting, among all of a file, and what comes instead
CHANGES = st.lists(st.tuples(st.integers(0, 200), JSON), min_size=1, max_size=2)


def change(settings: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """Give some settings, also those of sections, other values."""
    for number, value in changes:
        sections = [settings, *(part for part in settings.values() if isinstance(part, dict))]
        places = [(section, key) for section in sections for key in section]
        section, key = places[number % len(places)]
        section[key] = value
    return settings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained model's folder."""
    entry = find_entry("vit_tiny_patch16_224")
    model = entry.build(**{**entry.tiny, "num_classes": 3})
    prep = Preprocessing(model.image_size, model.channels)
    folder = tmp_path_factory.mktemp("bundle")
    save_classifier(SavedClassifier(model, Classification(("a", "b", "c")), prep), folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@fuzz
@given(changes=CHANGES)
def test_values_in_configurations_of_models(changes: list[tuple[int, Any]], bundle: Path) -> None:
    """Any values in the `config.json` of a model.

    Here: a model that predicts, or refused by name
    Others: of 200 configurations of a `ViT`, transformers' model gave finite outputs for 40; the others ended
        in `StrictDataclassFieldValidationError` (130), and, without a name, in `AttributeError`,
        `RuntimeError`, `ZeroDivisionError`, `IndexError` and the like
    """
    file = bundle / "config.json"
    whole = file.read_text()
    try:
        file.write_text(json.dumps(change(json.loads(whole), changes)))
        with suppress(ValueError):
            Predictor(bundle, device="cpu")(Image.new("RGB", (16, 16)))
    finally:
        file.write_text(whole)


@pytest.fixture(scope="module")
def run_settings() -> str:
    return config_text(read_command(["--model.name=vit_tiny_patch16_224"], None)[0])


@pytest.mark.filterwarnings("ignore")
@slow_fuzz
@given(changes=CHANGES)
def test_values_in_configurations_of_runs(
    changes: list[tuple[int, Any]], tmp_path: Path, run_settings: str
) -> None:
    """Any values in the `config.yaml` of a run.

    Here: a configuration, or refused by name
    Others: no counterpart
    """
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(change(yaml.safe_load(run_settings), changes)))
    with suppress(ValueError):
        read_command([f"--config={tmp_path / 'config.yaml'}"], None)


@fuzz
@given(edits=EDITS)
def test_records_of_images(edits: Edits, tmp_path: Path) -> None:
    """The record of a run's images.

    Here: read, or refused by name
    Others: no counterpart
    """
    images = tuple(RecordedImage("train", "a", 3, "0" * 32, f"{i}.png") for i in range(3))
    record = ImageRecord("folder", ("a",), "whole", images)
    check(record.write, read_record, "images.csv.gz", edits, tmp_path)


@fuzz
@given(edits=EDITS)
def test_metrics(edits: Edits, tmp_path: Path) -> None:
    """`metrics.csv`.

    Here: read, or refused by name
    Others: no counterpart
    """
    rows = [{"epoch": float(i), "val/loss": 0.5, "seconds": 1.0} for i in range(3)]
    check(lambda file: write_rows(file, rows), read_rows, "metrics.csv", edits, tmp_path)
