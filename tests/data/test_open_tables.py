"""Tables of image files."""

import os
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from vit_pytorch.data import Splits, find_images, open_data, read_record, record_images
from vit_pytorch.data.sizes import holds_photographs
from vit_pytorch.data.sources import with_columns


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two folders that are no classes."""
    for i in range(12):
        path = tmp_path / "photos" / str(i // 6) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(path)
    return tmp_path / "photos"


def names(photos: Path) -> list[str]:
    return [f"photos/{i // 6}/{i}.png" for i in range(12)]


def write(folder: Path, rows: list[list[str]], name: str = "list.csv") -> str:
    separator = "\t" if name.endswith("tsv") else ","
    (folder / name).write_text("\n".join(separator.join(row) for row in rows) + "\n")
    return f"csv:{folder / name}"


def labels(splits: Splits, split: str) -> dict[str, str]:
    """The class of each image of a split, by the image's name."""
    images = getattr(splits, split)
    return {images.key(i): splits.classes[label] for i, label in enumerate(images.labels.tolist())}


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_columns_are_found_by_their_names(photos: Path, tmp_path: Path, name: str) -> None:
    splits_of = ["train"] * 8 + ["Validation"] * 2 + ["TEST"] * 2
    rows = [
        [path, str(9 + i % 2), split]
        for i, (path, split) in enumerate(zip(names(photos), splits_of, strict=True))
    ]
    splits = open_data(write(tmp_path, [["Path", "Label", "split"], *rows], name))
    # by number, not by name
    assert splits.classes == ("9", "10")
    assert labels(splits, "train") == {path: label for path, label, split in rows if split == "train"}
    assert labels(splits, "val") == {path: label for path, label, split in rows if split == "Validation"}
    assert labels(splits, "test") == {path: label for path, label, split in rows if split == "TEST"}
    pixels, label = splits.val[0]
    assert (int(pixels.max()), label) == (160, 0)


@pytest.mark.filterwarnings("ignore:'NA' is learned like any other name")
def test_columns_are_named_and_splits_are_made(photos: Path, tmp_path: Path) -> None:
    rows = [[str(tmp_path / path), "NA" if i % 2 else "a, b"] for i, path in enumerate(names(photos))]
    quoted = [[f'"{cell}"' for cell in row] for row in rows]
    spec = with_columns(
        write(tmp_path, [["photo of", "kind"], *quoted]), {"image": "photo of", "label": "kind"}
    )
    splits = open_data(spec, seed=3)
    assert splits.classes == ("NA", "a, b")
    together = labels(splits, "train") | labels(splits, "val") | labels(splits, "test")
    assert together == {path: label for path, (_, label) in zip(names(photos), rows, strict=True)}
    record = record_images(splits, spec)
    record.write(tmp_path / "record")
    again = open_data(spec, record=read_record(tmp_path / "record"), changed="stop")
    assert labels(again, "test") == labels(splits, "test")
    assert not holds_photographs(spec)


def test_all_rows_that_cannot_be_used_are_named(photos: Path, tmp_path: Path) -> None:
    good = [[path, "ab"[i % 2], "train"] for i, path in enumerate(names(photos))]
    for name in ("second", "third"):
        (tmp_path / name).write_text("")
    bad = [
        ["photos/0/99.png", "a", "train"],
        ["", "a", "train"],
        ["photos/0/0.png", "a", "train"],
        ["list.csv", "", "train"],
        ["photos/", "a", "train"],
        ["photos/../second", "a", "spare"],
        ["photos/1/../../third", "c", "val"],
    ]
    with pytest.raises(ValueError, match="7 rows") as fault:
        open_data(write(tmp_path, [["image", "label", "split"], *good, *bad]))
    assert str(fault.value).splitlines() == [
        f"{tmp_path / 'list.csv'} has 7 rows that cannot be used:",
        "row 13: no such file: photos/0/99.png",
        "row 14 names no image",
        "row 15: the image of row 1 again: photos/0/0.png",
        "row 16 has no label: list.csv",
        "row 17: no such file: photos/",
        "row 18: the split is none of train, val and test: 'spare'",
        "row 19: no training image has the label 'c': photos/1/../../third",
    ]


@pytest.mark.skipif(os.sep == "\\", reason="backslashes separate folders there")
def test_what_a_missing_file_is_likely_to_be(photos: Path, tmp_path: Path) -> None:
    rows = [[path.replace("/", "\\"), "a"] for path in names(photos)]
    rows += [["photos\\99.png", "a"], ["photos/0/3", "a"], ["https://a.example/3.png", "a"]]
    with pytest.raises(ValueError, match="15 rows") as fault:
        open_data(write(tmp_path, [["image", "label"], *rows]))
    lines = str(fault.value).splitlines()
    cause = "; backslashes separate no folders on this system, and with slashes it is there"
    assert lines[1] == f"row 1: no such file: photos\\0\\0.png{cause}"
    assert lines[-3:] == [
        "row 13: no such file: photos\\99.png",
        "row 14: no such file: photos/0/3; there is 3.png",
        "row 15: no such file: https://a.example/3.png; addresses are not fetched: download it first",
    ]
    # the name of data, and a file of that name, are no addresses
    with pytest.raises(FileNotFoundError) as missing:
        find_images(["csv:/x"])
    assert "addresses" not in str(missing.value)
    for find in (open_data, lambda path: find_images([path])):
        with pytest.raises(FileNotFoundError, match=re.escape(cause)):
            find(f"{tmp_path}\\photos")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["image", "path", "label"]],
            "must have one image column.*'image', 'path', 'label'.*--data.image_column",
        ),
        ([["image", "kind"]], "must have one label column"),
        ([["image", "label"]], "has no rows"),
        ([[""]], "cannot be read as a table"),
        ([["image", "label", "split"], ["x", "a", "test"]], "no rows whose split is 'train'"),
        ([["image", "label"], ["x", "a", "train"]], "more cells than its header has columns"),
        ([["image", "label", "label"], ["x", "a", "b"]], "the column 'label' stands twice"),
    ],
)
def test_tables_that_are_none(rows: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(write(tmp_path, rows))


def parquet(photos: Path, column: str, cells: list[object], *, index: str | None = None) -> str:
    table = pandas.DataFrame({"image": names(photos), column: cells * (12 // len(cells))})
    file = photos.parent / "list.parquet"
    (table if index is None else table.set_index(index)).to_parquet(file)
    return f"csv:{file}"


def test_cells_of_parquet(photos: Path) -> None:
    """Bytes that are text are text; an empty cell of a column of numbers is empty; an index is a column."""
    assert open_data(parquet(photos, "label", [b"cat", b"dog"])).classes == ("cat", "dog")
    assert open_data(parquet(photos, "label", ["cat", "dog"], index="image")).classes == ("cat", "dog")
    spec = parquet(photos, "label", [1, 2, None])
    pandas.read_parquet(spec[4:]).astype({"label": "Int64"}).to_parquet(spec[4:])
    with pytest.raises(ValueError, match="has 4 rows that cannot be used:\nrow 3 has no label"):
        open_data(spec)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([b"\x89PNG", b"\xff"], "column 'tags' must hold text.*, got bytes; hf:FOLDER reads"),
        (
            [{"bytes": b"a", "path": "b"}, {"bytes": b"b", "path": "c"}],
            "'tags' must hold .* parts with names",
        ),
        ([["a", "b|c"], ["c"]], r"must hold names without '\|', got 'b\|c': choose another"),
        (["['a', 'b']", "[]"], r"not written lists, got \"\['a', 'b'\]\""),
        (['{"a"}', "b"], "not written lists, got '{\"a\"}'"),
    ],
)
def test_cells_that_are_no_labels(photos: Path, cells: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(parquet(photos, "tags", cells), task="multilabel")


def test_labels_with_another_separator_are_warned_of(photos: Path) -> None:
    """Where no image has several labels and names share parts, though none of these is a label itself."""
    with pytest.warns(UserWarning, match=r"such as 'a,b' are made of others: what separates them is '\|'"):
        open_data(parquet(photos, "tags", ["a,b", "b,c"]), task="multilabel")
    spec = parquet(photos, "tags", ["pepper, red", "onion, red|leek", "leek"])
    assert open_data(spec, task="multilabel").classes == ("leek", "onion, red", "pepper, red")


def test_rows_of_a_test_split_alone_are_measured(photos: Path, tmp_path: Path) -> None:
    rows = [[path, "ab"[i % 2], "test"] for i, path in enumerate(names(photos))]
    spec = write(tmp_path, [["image", "label", "split"], *rows])
    splits = open_data(spec, whole=True)
    assert splits.measured == ("test",)
    assert labels(splits, "test") == {path: label for path, label, _ in rows}
    with pytest.raises(ValueError, match="no rows whose split is 'train'"):
        open_data(spec)
    spec = write(tmp_path, [["image", "label", "split"], *rows, ["photos/0/0.png", "a", "fold3"]])
    with pytest.raises(ValueError, match="row 13: the image of row 1 again"):
        open_data(spec, whole=True)


def test_what_is_asked_for_and_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such table"):
        open_data(f"csv:{tmp_path / 'none.csv'}")
    spec = write(tmp_path, [["image", "label"]])
    with pytest.raises(ValueError, match="has no column 'kind'; it has 'image', 'label'"):
        open_data(f"{spec}?label=kind")
    with pytest.raises(
        ValueError, match=r"task multilabel takes one column of labels, whose cells .*; got a,b"
    ):
        open_data(f"{spec}?label=a,b", task="multilabel")
    with pytest.raises(
        ValueError, match="options of csv: are image, label, split, separator and root, got picture"
    ):
        open_data(f"{spec}?picture=kind")
    with pytest.raises(ValueError, match=r"columns are those of csv: and hf: data, got digits with image"):
        with_columns("digits", {"image": "x", "label": None})


def test_pretraining_needs_no_label_column(photos: Path, tmp_path: Path) -> None:
    spec = write(tmp_path, [["image"], *[[path] for path in names(photos)]])
    with pytest.raises(ValueError, match="must have one label column"):
        open_data(spec)
    splits = open_data(spec, unlabelled=True)
    assert (splits.classes, len(splits.train), len(splits.val), splits.test) == ((), 11, 1, None)
    assert "has no label column" in splits.unlabelled
    labelled = [[path, "b" if i else "a"] for i, path in enumerate(names(photos))]
    splits = open_data(write(tmp_path, [["image", "label"], *labelled]), unlabelled=True)
    assert (splits.classes, len(splits.train)) == ((), 11)
    assert "class 'a' has 1 images" in splits.unlabelled


def test_several_labels_in_a_cell(photos: Path, tmp_path: Path) -> None:
    cells = ["b; a", "a", "", "b;b", "a;10", "10", "b", "a", "a;b", "10", "", "a"]
    splits_of = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    rows = [list(row) for row in zip(names(photos), cells, splits_of, strict=True)]
    spec = write(tmp_path, [["image", "tags", "split"], *rows])
    splits = open_data(f"{spec}?separator=%3B", task="multilabel")
    assert (splits.classes, splits.task) == (("10", "a", "b"), "multilabel")
    assert splits.train.labels[:5].tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert splits.test is not None
    pixels, label = splits.test[0]
    assert isinstance(label, torch.Tensor)
    assert (int(pixels.max()), label.tolist()) == (200, [0, 0, 0])
    rows[8][1] = "a;c;d"
    with pytest.raises(ValueError, match="row 9: no training image has the label 'c', 'd': photos/1/8"):
        open_data(f"{write(tmp_path, [['image', 'tags', 'split'], *rows])}?separator=%3B", task="multilabel")


def test_numbers_in_columns(photos: Path, tmp_path: Path) -> None:
    rows = [[path, str(i / 4), str(10 - i)] for i, path in enumerate(names(photos))]
    spec = write(tmp_path, [["image", "x", "y"], *rows])
    splits = open_data(f"{spec}?label=y,x", task="regression", seed=1)
    assert splits.classes == ("y", "x")
    parts = [splits.train, splits.val, splits.test]
    assert all(part is not None for part in parts)
    found = {
        part.key(i): part.labels[i].tolist() for part in parts if part is not None for i in range(len(part))
    }
    assert found == {path: [10 - i, i / 4] for i, path in enumerate(names(photos))}
    assert sorted(len(part) for part in parts if part is not None) == [1, 2, 9]
    record = record_images(splits, spec)
    record.write(tmp_path / "record")
    restore = {"record": read_record(tmp_path / "record"), "task": "regression"}
    again = open_data(f"{spec}?label=y,x", changed="stop", **restore)  # type: ignore[arg-type]
    assert torch.equal(again.val.labels, splits.val.labels)
    rows[3][1], rows[5][2] = "0.76", "inf"
    with pytest.raises(ValueError, match="row 6: 'y' must be a finite number, got 'inf': photos/0/5"):
        open_data(f"{write(tmp_path, [['image', 'x', 'y'], *rows])}?label=y,x", task="regression")
    rows[5][2] = "5"
    changed = f"{write(tmp_path, [['image', 'x', 'y'], *rows])}?label=y,x"
    with pytest.raises(ValueError, match="has changed since"):
        open_data(changed, changed="stop", **restore)  # type: ignore[arg-type]


def test_targets_that_teach_nothing(photos: Path, tmp_path: Path) -> None:
    rows = [[path, "7"] for path in names(photos)]
    spec = write(tmp_path, [["image", "label"], *rows])
    with pytest.raises(ValueError, match="all 9 training images have 7 for 'label'"):
        open_data(spec, task="regression", val_fraction=0.1)
    with pytest.raises(ValueError, match="all 9 training images have 1 for '7'"):
        open_data(spec, task="multilabel", val_fraction=0.1)
    with pytest.raises(ValueError, match="task regression learns from a table, csv:FILE, got digits"):
        open_data("digits", task="regression")


def test_parquet_tables(photos: Path, tmp_path: Path) -> None:
    """Several tables of one pattern, whose paths begin at another folder; cells are numbers or lists."""
    paths = [path.removeprefix("photos/") for path in names(photos)]
    tags = [["a", "b"], ["b"], [], ["a"]] * 3
    frame = pandas.DataFrame({"image": paths, "label": [1, 2] * 6, "tags": tags, "x": [0.5, 2.0] * 6})
    (tmp_path / "parts").mkdir()
    for part in range(2):
        frame[6 * part : 6 * part + 6].to_parquet(tmp_path / "parts" / f"{part}.parquet")
    spec = f"csv:{tmp_path / 'parts' / '*.parquet'}?root={photos}"
    splits = open_data(spec)
    assert (splits.classes, splits.train.key(0).count("/")) == (("1", "2"), 1)
    assert open_data(f"{spec}&label=tags", task="multilabel").classes == ("a", "b")
    assert open_data(f"{spec}&label=x", task="regression").train.labels.unique().tolist() == [0.5, 2.0]
    assert not holds_photographs(spec)
    frame[:6].rename(columns={"x": "z"}).to_parquet(tmp_path / "parts" / "2.parquet")
    with pytest.raises(ValueError, match="tables that are one must have the same columns"):
        open_data(spec)
    (tmp_path / "parts" / "0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"0.parquet cannot be read as a table"):
        open_data(spec)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_semicolons_of_a_spreadsheet(photos: Path, tmp_path: Path, encoding: str) -> None:
    rows = [f"{path};{'a, b' if i % 2 else 'c'} " for i, path in enumerate(names(photos))]
    (tmp_path / "list.csv").write_text("\r\n".join(["image;label", *rows, ""]), encoding=encoding)
    splits = open_data(f"csv:{tmp_path / 'list.csv'}")
    assert splits.classes == ("a, b", "c")
    found = labels(splits, "train") | labels(splits, "val") | labels(splits, "test")
    assert found == {path: "a, b" if i % 2 else "c" for i, path in enumerate(names(photos))}


@pytest.mark.parametrize(("separator", "label"), [(";", "a, b"), (",", "a; b"), ("\t", "a, b; c")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_separator_that_a_spreadsheet_names(
    photos: Path, tmp_path: Path, separator: str, label: str, encoding: str
) -> None:
    rows = [f"{path}{separator}{label if i % 2 else 'c'}" for i, path in enumerate(names(photos))]
    lines = [f"sep={separator}", f"image{separator}label", *rows, ""]
    (tmp_path / "list.csv").write_text("\r\n".join(lines), encoding=encoding)
    splits = open_data(f"csv:{tmp_path / 'list.csv'}")
    assert splits.classes == (label, "c")
    assert sum(len(part) for part in (splits.train, splits.val, splits.test) if part is not None) == 12


def test_tabs_in_a_table_that_is_not_named_so(photos: Path, tmp_path: Path) -> None:
    rows = [f"{path}\t{'a, b' if i % 2 else 'c'}" for i, path in enumerate(names(photos))]
    (tmp_path / "list.csv").write_text("\n".join(["image\tlabel", *rows]))
    assert open_data(f"csv:{tmp_path / 'list.csv'}").classes == ("a, b", "c")


def test_labels_that_are_made_of_others(photos: Path, tmp_path: Path) -> None:
    """As where the separator of labels is another one, or several labels are taken for a class."""
    cells = ["a; b", "a", "b"] * 4
    spec = write(
        tmp_path,
        [["image", "label"], *([path, cell] for path, cell in zip(names(photos), cells, strict=True))],
    )
    with pytest.warns(
        UserWarning, match=r"labels such as 'a; b' are made of others: .* '\|' \(data\.label_sep"
    ):
        assert open_data(spec, task="multilabel").classes == ("a", "a; b", "b")
    with pytest.warns(UserWarning, match="classes such as 'a; b' are made of others: --task multilabel"):
        assert open_data(spec).classes == ("a", "a; b", "b")
    assert open_data(f"{spec}?separator=%3B", task="multilabel").classes == ("a", "b")


def test_decimal_commas(photos: Path, tmp_path: Path) -> None:
    rows = [f"{path};{'3,5' if i == 4 else i}" for i, path in enumerate(names(photos))]
    rows[6] = rows[6].replace(";6", ";6_0")
    (tmp_path / "list.csv").write_text("\n".join(["image;label", *rows]))
    with pytest.raises(ValueError, match="2 rows") as fault:
        open_data(f"csv:{tmp_path / 'list.csv'}", task="regression")
    assert str(fault.value).splitlines()[1] == (
        "row 5: 'label' must be a finite number without commas, its decimals after a point, got '3,5': "
        "photos/0/4.png"
    )
    assert str(fault.value).splitlines()[2].endswith("must be a finite number, got '6_0': photos/1/6.png")


def test_a_comma_in_the_header_separates(photos: Path, tmp_path: Path) -> None:
    rows = [[path, f"{i % 2};x"] for i, path in enumerate(names(photos))]
    assert open_data(write(tmp_path, [["image", "label"], *rows])).classes == ("0;x", "1;x")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_table_that_is_no_utf_8(photos: Path, tmp_path: Path, encoding: str) -> None:
    rows = [f"{path},Größe" for path in names(photos)]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *rows]), encoding=encoding)
    with pytest.raises(
        ValueError, match=r"list\.csv cannot be read as a table: it is not UTF-8 .*save it as"
    ):
        open_data(f"csv:{tmp_path / 'list.csv'}")
