"""Data that can be read in two ways, or that would be read wrongly without a word, are refused or named."""

import gzip
import os
import struct
import tarfile
import unicodedata
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.cli.conftest import TINY
from tests.cli.conftest import train as train_run
from vit_pytorch.data import (
    ImageData,
    LoadingError,
    Preprocessing,
    StreamConfig,
    decode_image,
    find_duplicates,
    find_equal_pixels,
    open_data,
    record_images,
)
from vit_pytorch.data import record as record_module
from vit_pytorch.data.loader import OnBad
from vit_pytorch.data.remote import open_shard
from vit_pytorch.data.shards import read_shards
from vit_pytorch.data.stream import read_classes
from vit_pytorch.training.evaluation import value_figures
from vit_pytorch.training.predictor import as_pixels


def photographs(folder: Path, count: int) -> list[str]:
    """Write images, each of its own colour, and return their names."""
    folder.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)
    return names


def write_table(folder: Path, header: str, rows: list[str]) -> str:
    (folder / "table.csv").write_text("\n".join([header, *rows, ""]))
    return f"csv:{folder / 'table.csv'}"


@pytest.mark.parametrize("form", ["absolute", "through another folder", "link"])
def test_one_image_under_two_names(form: str, tmp_path: Path) -> None:
    """A table names an image twice, under two paths, in training and in the test.

    Here: refused with both rows
    Others: Hugging Face's `datasets` (`imagefolder` with a `metadata.csv`) takes the image twice
        without a word
    """
    names = photographs(tmp_path, 8)
    alias = {"absolute": f"{tmp_path}/0.png", "through another folder": "sub/../0.png", "link": "link.png"}
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.png").symlink_to("0.png")
    rows = [f"{name},{'ab'[i % 2]},{'train' if i < 6 else 'test'}" for i, name in enumerate(names)]
    spec = write_table(tmp_path, "image,label,split", [*rows, f"{alias[form]},a,test"])
    with pytest.raises(ValueError, match=r"row 9: the image of row 1 again: "):
        open_data(spec)


def test_a_quotation_mark_that_is_not_closed(tmp_path: Path) -> None:
    """Stray quotation marks in a table, between which rows are read as one label.

    Here: refused with the row
    Others: `datasets` (`imagefolder` with a `metadata.csv`): three rows of five, and a class of three
        lines, without a word
    """
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(photographs(tmp_path, 12))]
    rows[2] = rows[2].replace(",", ',"')
    rows[6] += '"'
    with pytest.raises(ValueError, match="row 3 has a label of several lines, as where a quotation mark"):
        open_data(write_table(tmp_path, "image,label", rows))


@pytest.mark.parametrize(
    "names",
    [
        *(("1", "01"), ("1", "1.0"), ("café", unicodedata.normalize("NFD", "café"))),
        # an invisible space, and two letters of another alphabet
        *(("cat", "cat\u200b"), ("cat", "\u0441\u0430t"), ("big-cat", "big_cat")),
    ],
)
def test_classes_that_are_written_in_two_ways(names: tuple[str, str], tmp_path: Path) -> None:
    """Names of classes that look alike: 1, 01 and 1.0; letters with an accent in one character or two;
    letters of another alphabet; invisible characters; hyphens.

    Here: a warning with both names
    Others: torchvision's `ImageFolder` and timm's dataset: two classes without a word
    """
    rows = [f"{name},{names[i % 2]}" for i, name in enumerate(photographs(tmp_path, 12))]
    with pytest.warns(UserWarning, match="differ only in case, spaces, hyphens, encoding, letters that look"):
        open_data(write_table(tmp_path, "image,label", rows))


@pytest.mark.parametrize("name", ["NaN", "NA", "n/a"])
def test_a_label_that_says_that_there_is_none(name: str, tmp_path: Path) -> None:
    """A class by the name that programs write for a missing value: NaN, NA, n/a.

    Here: learned like any other, with a warning
    Others: `datasets` (`imagefolder` with a `metadata.csv`): NA and None become no label, without a word
    """
    rows = [f"{path},{(name, 'cat', 'None')[i % 3]}" for i, path in enumerate(photographs(tmp_path, 12))]
    with pytest.warns(UserWarning, match=f"'{name}' is learned like any other name: if it stands for labels"):
        splits = open_data(write_table(tmp_path, "image,label", rows))
    assert set(splits.classes) == {name, "cat", "None"}


@pytest.mark.parametrize("values", [range(1_700_000_000, 1_700_000_012), [1e39 * i for i in range(12)]])
def test_values_that_single_precision_does_not_hold(values: list[float], tmp_path: Path) -> None:
    """Values to learn, such as times in seconds since 1970, that differ by less than single precision holds.

    Here: refused with their range
    Others: `torch.tensor` makes one value of twelve such times, without a word
    """
    rows = [f"{name},{value}" for name, value in zip(photographs(tmp_path, 12), values, strict=True)]
    spec = write_table(tmp_path, "image,label", rows)
    with pytest.raises(ValueError, match=r"'label' has values from .* single precision does not hold"):
        open_data(spec, task="regression")


@pytest.mark.parametrize("unit", [1e-30, 1e-4, 1.0, 1e30])
def test_r2_does_not_depend_on_the_unit(unit: float) -> None:
    """Values to learn that are small numbers, such as metres for micrometres.

    Here: R² is what it is in any unit
    Others: torchmetrics' `r2_score`: 1.0 for any prediction where the targets' sum of squares is below 1e-4
    """
    targets = torch.tensor([[1.0], [2.0], [3.0], [6.0]]) * unit
    found = value_figures(["x"], torch.full_like(targets, 2 * unit), targets)["x"]["r2"]
    assert found == pytest.approx(1 - 18 / 14, rel=1e-5)


def write_shard(file: Path, labels: list[str], role: str = "cls") -> None:
    picture = BytesIO()
    Image.new("RGB", (4, 4)).save(picture, format="PNG")
    with tarfile.open(file, "w") as archive:
        for number, label in enumerate(labels):
            for extension, content in (("png", picture.getvalue()), (role, label.encode())):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", "line 2 is empty"),
        ("\ncat\ndog\n", "line 1 is empty"),
        ("1\n0\n", "may be the class named '0' or that of index 0"),
        ("cat\ndog\ncat\n", "names of classes must differ, got 'cat' twice"),
    ],
)
def test_a_list_of_classes_that_can_be_read_in_two_ways(text: str, message: str, tmp_path: Path) -> None:
    """A `classes.txt` of shards with an empty line, a name that is another's index, or a name twice.

    Here: refused with the line or the name
    Others: no counterpart
    """
    write_shard(tmp_path / "a.tar", ["0", "1"] * 8)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data(f"wds:{tmp_path / 'a.tar'}")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ('{"label": 0, "label": 1}', "'label' stands in it twice"),
        ('{"label": 0, "cls": 1}', "has the labels 1 and 0"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
    ],
)
def test_a_label_of_json_that_can_be_read_in_two_ways(member: str, message: str, tmp_path: Path) -> None:
    """A `.json` member of a shard that has a label twice, or is nested deeper than any program reads.

    Here: refused with the sample
    Others: webdataset takes the last of two labels without a word; deep nesting ends in a `DecodingError`
    """
    write_shard(tmp_path / "a.tar", [member if i == 3 else f'{{"label": {i % 2}}}' for i in range(8)], "json")
    with pytest.raises(ValueError, match=f"the .json member of .*a.tar:3 .*{message}"):
        open_data(f"wds:{tmp_path / 'a.tar'}")


def test_a_list_of_classes_with_a_byte_order_mark(tmp_path: Path) -> None:
    """A `classes.txt` that begins with a byte order mark, as editors on Windows write it.

    Here: the mark is no part of the first name
    Others: no counterpart
    """
    write_shard(tmp_path / "a.tar", ["cat", "1"] * 8)
    (tmp_path / "classes.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    images, classes = read_shards(str(tmp_path / "a.tar"))
    assert classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 1] * 8


def test_more_classes_than_a_model_can_have() -> None:
    """`--data.classes 99999999999` of a stream.

    Here: refused, instead of names for all of them
    Others: no counterpart
    """
    with pytest.raises(
        ValueError, match=r"the number of classes must be in \[0, 16777216\], got 99999999999"
    ):
        read_classes(99999999999)


def test_a_hub_data_set_whose_splits_differ(tmp_path: Path) -> None:
    """A saved `hf:` data set of which a split lacks the label column.

    Here: the split and the column are named
    Others: `datasets` loads both splits, each with its own columns, without a word
    """
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": b"", "path": None}] * 4}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    train = datasets.Dataset.from_dict({**rows, "label": [0, 1, 0, 1]}, features=datasets.Features(features))
    test = train.rename_column("label", "lable")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"d\[test\] has no column 'label'; it has 'image', 'lable'"):
        open_data(f"hf:{tmp_path / 'd'}")


def test_a_hub_data_set_of_a_test_split_alone(tmp_path: Path) -> None:
    """An `hf:` data set that has a test split only.

    Here: a warning that it is divided for training
    Others: no counterpart
    """
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"image": [{"bytes": bytes([i]), "path": None} for i in range(16)], "label": [0, 1] * 8}
    test = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"test": test}).save_to_disk(str(tmp_path / "d"))
    with pytest.warns(UserWarning, match="has only the split 'test', which is divided for training"):
        open_data(f"hf:{tmp_path / 'd'}")


@pytest.mark.parametrize("damage", ["cut", "empty", "state"])
def test_a_damaged_hub_data_set(damage: str, tmp_path: Path) -> None:
    """A saved `hf:` data set whose table or description is cut.

    Here: the data set is named
    Others: `datasets`: an `OSError` or `ArrowInvalid` that names neither data set nor file
    """
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"image": [{"bytes": os.urandom(500), "path": None} for _ in range(16)], "label": [0, 1] * 8}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(str(tmp_path / "d"))
    file = next((tmp_path / "d").glob("*.arrow")) if damage != "state" else tmp_path / "d" / "state.json"
    file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else file.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"hf:{tmp_path / 'd'} cannot be opened: "):
        open_data(f"hf:{tmp_path / 'd'}")


@pytest.mark.parametrize("cell", ["", "|"])
def test_a_table_of_several_labels_without_any(cell: str, tmp_path: Path) -> None:
    """`--task multilabel` with a column of labels that is empty.

    Here: refused in a sentence
    Others: no counterpart
    """
    rows = [f"{name},{cell}" for name in photographs(tmp_path, 12)]
    with pytest.raises(ValueError, match="training needs labels: none of its 9 images has one"):
        open_data(write_table(tmp_path, "image,labels", rows), task="multilabel")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_shard_of_a_stream_that_is_no_file(kind: str, tmp_path: Path) -> None:
    """A pipe or a folder among the shards of a stream.

    Here: refused with its name, instead of waiting for somebody to write to it
    Others: webdataset: no end in 10 seconds with a pipe
    """
    pytest.importorskip("webdataset")
    place = tmp_path / "a.tar"
    if kind == "folder":
        place.mkdir()
    elif hasattr(os, "mkfifo"):
        os.mkfifo(place)
    else:
        pytest.skip("needs pipes with names")
    with pytest.raises(ValueError, match="it is no regular file"):
        open_shard(str(place))


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_stream_of_shards_without_samples(on_bad: OnBad, tmp_path: Path) -> None:
    """A stream whose shards are whole archives, and empty.

    Here: refused, instead of drawing shards for ever
    Others: webdataset: a `ValueError` once through the shards; with `resampled=True` no end in 10
        seconds
    """
    pytest.importorskip("webdataset")
    write_shard(tmp_path / "empty.tar", [])
    write_shard(tmp_path / "val.tar", ["0", "1"])
    config = StreamConfig(epoch_samples=8, classes=2, val=str(tmp_path / "val.tar"))
    splits = open_data(f"stream:{tmp_path / 'empty.tar'}", stream=config)
    data = ImageData(splits, image_size=4, batch_size=4, on_bad=on_bad)
    data.setup()
    # the images for validation are black
    black = pytest.warns(UserWarning, match="values 0 to 0 of 0 to 255$")
    with black, pytest.raises(LoadingError, match="it holds no samples"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize("targets", [("a.png",), ("b.png", "a.png")])
def test_links_that_lead_to_themselves(targets: tuple[str, ...], tmp_path: Path) -> None:
    """Links to themselves, or to each other, beside the folders of classes.

    Here: left out, and named
    Others: torchvision's `ImageFolder`: an `OSError` that names the link; timm's dataset counts it as an
        image
    """
    for name in ("cat", "dog"):
        photographs(tmp_path / name, 8)
    for link, target in zip(("a.png", "b.png"), targets, strict=False):
        (tmp_path / link).symlink_to(target)
    with pytest.warns(UserWarning, match=r"link to nothing \(\d: .*a.png"):
        splits = open_data(str(tmp_path))
    assert splits.classes == ("cat", "dog")


def test_large_files_with_equal_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 1 GiB of arrays or volumes of one size, whose first and last 32 KiB are alike.

    Here: told apart by parts between them
    Others: no counterpart
    """
    monkeypatch.setattr(record_module, "LARGE", 0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(8):
            image = np.zeros((400, 400), np.uint8)
            image[100:300] = 1 + number + 8 * (label == "b")
            np.save(tmp_path / label / f"{number}.npy", image)
    assert not str(find_duplicates(record_images(open_data(str(tmp_path)), "x")))


def test_one_picture_in_several_encodings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training picture is in validation or the test as a BMP, TIFF or WebP file, or with other metadata.

    Here: named when the run begins, as equal files are; a line says where there are too many images for that
    Others: no counterpart
    """
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    places = [(split, label) for split in ("train", "val", "test") for label in ("a", "b")]
    for number, image in enumerate(pixels):
        folder = Path(tmp_path, "data", *places[number % 6])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    train, val, test = (tmp_path / "data" / split / "a" for split in ("train", "val", "test"))
    first, second = sorted(train.iterdir())[:2]
    with Image.open(first) as picture, Image.open(second) as other:
        picture.save(val / "x.bmp")
        picture.save(val / "x.webp", lossless=True)
        picture.save(test / "y.tiff")
        # a copy with loss is another picture
        picture.save(test / "z.jpg", quality=95)
        picture.convert("L").save(train / "grey.png")
        picture.convert("L").convert("RGB").save(test / "grey.bmp")
        info = PngInfo()
        info.add_text("Comment", "a copy")
        other.save(val / "described.png", pnginfo=info)
    splits = open_data(str(tmp_path / "data"))
    record = record_images(splits, "x")
    assert not str(find_duplicates(record))
    found = find_duplicates(record, find_equal_pixels(record, splits))
    assert found.across_classes == ()
    assert {frozenset(name.rpartition("/")[2] for name in group) for group in found.across_splits} == {
        frozenset({first.name, "x.bmp", "x.webp", "y.tiff"}),
        frozenset({second.name, "described.png"}),
        frozenset({"grey.png", "grey.bmp"}),
    }
    run = ["--data", tmp_path / "data", *TINY, "--epochs=1", "--workers=0", "--batch-size=8"]
    assert train_run("--output", tmp_path / "run", *run) == 0
    assert "data   3 images are in several splits (train: " in capsys.readouterr().out
    monkeypatch.setattr(record_module, "DECODED", 100_000)
    assert find_equal_pixels(record, splits) is None
    assert train_run("--output", tmp_path / "more", *run) == 0
    assert "too many images to compare their pixels: of duplicates only equal" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["array", "pillow", "tensor"])
def test_8_bits_in_memory_and_a_window_of_more(form: str, tmp_path: Path) -> None:
    """A model of 12-bit images is given one of 8 bits in memory, by `Predictor`.

    Here: refused, as a file of 8 bits is; arrays of 16 bits pass the window
    Others: no counterpart
    """
    prep = Preprocessing((8, 8), channels=1, window=(0.0, 4095.0))
    pixels = np.full((8, 8), 200, np.uint8)
    forms = {
        "array": pixels,
        "pillow": Image.fromarray(pixels),
        "tensor": torch.from_numpy(pixels)[None],
    }
    with pytest.raises(ValueError, match=r"8 bits, and the window .* of 0 to 4095 is for more"):
        as_pixels(forms[form], prep)
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    expected = decode_image(tmp_path / "ramp.png", channels=1, window=prep.window)
    assert (int(expected.min()), int(expected.max())) == (0, 255)
    assert torch.equal(as_pixels(ramp, prep), expected)
    assert torch.equal(as_pixels(ramp.astype(np.float64), prep), expected)
    # a window within 8 bits acts on images in memory as on files
    narrow = as_pixels(forms[form], replace(prep, window=(100.0, 200.0)))
    assert int(narrow.min()) == 255


def test_two_idx_files_of_one_name(tmp_path: Path) -> None:
    """An IDX file with a compressed one of its name beside it, of other content.

    Here: refused with both; one of the same content is taken
    Others: torchvision's `MNIST` reads the first and leaves the other aside without a word
    """
    for part in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 12, 4, 4) + bytes(range(192))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">4BI", 0, 0, 8, 1, 12) + bytes([0, 1] * 6)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    twin = tmp_path / "train-labels-idx1-ubyte.gz"
    twin.write_bytes(gzip.compress(labels))
    assert open_data(f"idx:{tmp_path}").classes == ("0", "1")
    for other in (
        gzip.compress(labels[:-1] + b"\0"),
        gzip.compress(labels + b"\0"),
        gzip.compress(labels)[:20],
    ):
        twin.write_bytes(other)
        with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz does not hold what train-labels"):
            open_data(f"idx:{tmp_path}")
