import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from made_pictures import picture, png

from vit_pytorch.data import BadImageError, decode_image, open_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def made(count: int, label: object, *, first: int = 0) -> datasets.Dataset:
    rows = {
        "picture": [{"bytes": png(first + i), "path": None} for i in range(count)],
        "kind": [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({"picture": datasets.Image(), "kind": label})
    )


CAT_DOG = datasets.ClassLabel(names=["cat", "dog"])


def test_saved_splits(tmp_path: Path) -> None:
    saved = {"train": made(6, CAT_DOG), "validation": made(4, CAT_DOG, first=10), "test": made(2, CAT_DOG)}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    splits = open_data(f"hf:{tmp_path / 'saved'}")
    assert splits.test is not None
    assert splits.classes == ("cat", "dog")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    image, label = splits.val[3]
    assert torch.equal(image, decode_image(png(13)))
    assert label == 1
    assert splits.val.name(3).endswith("saved[val][3]")


def test_splits_by_their_other_names(tmp_path: Path) -> None:
    saved = {"Training": made(6, CAT_DOG), "dev": made(4, CAT_DOG), "testing": made(2, CAT_DOG)}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    splits = open_data(f"hf:{tmp_path / 'saved'}")
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 4, 2]


def test_two_splits_of_one_kind_and_splits_left_out(tmp_path: Path) -> None:
    parts = {"train": made(6, CAT_DOG), "val": made(4, CAT_DOG)}
    datasets.DatasetDict({**parts, "valid": made(2, CAT_DOG)}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="one part for val, got 'val' and 'valid'"):
        open_data(f"hf:{tmp_path / 'two'}")
    datasets.DatasetDict({**parts, "extra": made(2, CAT_DOG)}).save_to_disk(tmp_path / "more")
    with pytest.warns(UserWarning, match=r"hf:.*more: left out the splits 'extra'"):
        assert len(open_data(f"hf:{tmp_path / 'more'}").train) == 6


def test_learning_without_labels_takes_any_images(tmp_path: Path) -> None:
    name = f"hf:{tmp_path / 'saved'}"
    made(10, CAT_DOG).save_to_disk(tmp_path / "saved")
    assert open_data(name, unlabelled=True).classes == ("cat", "dog")
    with pytest.raises(ValueError, match="has no column 'sort'"):
        open_data(f"{name}?label=sort", unlabelled=True)
    shutil.rmtree(tmp_path / "saved")
    made(10, CAT_DOG).remove_columns("kind").save_to_disk(tmp_path / "saved")
    splits = open_data(name, unlabelled=True)
    assert (splits.classes, splits.test, len(splits.train), len(splits.val)) == ((), None, 9, 1)
    assert "must have one column of type ClassLabel" in splits.unlabelled
    with pytest.raises(ValueError, match="must have one column of type ClassLabel"):
        open_data(name)


def test_one_saved_split_is_split_by_class(tmp_path: Path) -> None:
    made(20, CAT_DOG).save_to_disk(tmp_path / "saved")
    splits = open_data(f"hf:{tmp_path / 'saved'}")
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [14, 2, 4]
    assert splits.val.labels.tolist() in ([0, 1], [1, 0])
    for index in range(len(splits.train)):
        row = int(splits.train.name(index).rsplit("[", 1)[1].rstrip("]"))
        assert torch.equal(splits.train[index][0], decode_image(png(row)))


def test_parquet_with_names_as_labels(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = made(8, datasets.Value("int64"))
    named = rows.map(lambda row: {"label": ["owl", "elk"][row["kind"]]}).remove_columns("kind")
    named.to_parquet(folder / "train.parquet")
    named.select([0, 1]).to_parquet(folder / "test.parquet")
    splits = open_data(f"hf:{folder}", val_fraction=0.25)
    assert splits.test is not None
    assert splits.classes == ("elk", "owl")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 2, 2]
    assert splits.test.labels.tolist() == [1, 0]


def test_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            picture(i).save(folder / name / f"{i}.png")
    splits = open_data(f"hf:{folder}")
    assert splits.classes == ("cat", "dog")
    assert splits.train[0][0].shape == (3, 8, 8)


def test_ambiguous_label_column_is_listed_and_can_be_named(tmp_path: Path) -> None:
    rows = made(20, CAT_DOG)
    fine = rows.add_column("fine", np.arange(20) % 4).cast_column(
        "fine", datasets.ClassLabel(names=["a", "b", "c", "d"])
    )
    fine.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"one column of type ClassLabel, got 2 .*\?label=COLUMN"):
        open_data(f"hf:{tmp_path / 'saved'}")
    assert open_data(f"hf:{tmp_path / 'saved'}?label=fine").num_classes == 4
    with pytest.raises(ValueError, match="no column 'size'"):
        open_data(f"hf:{tmp_path / 'saved'}?label=size")
    with pytest.raises(ValueError, match="options of hf: are config, image and label, got lable"):
        open_data(f"hf:{tmp_path / 'saved'}?lable=fine")


def test_label_that_training_does_not_have(tmp_path: Path) -> None:
    saved = {
        "train": made(4, datasets.Value("int64")).rename_column("kind", "label"),
        "test": made(4, datasets.Value("int64"))
        .map(lambda row: {"label": row["kind"] + 1})
        .remove_columns("kind"),
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved\[test\] has the label '2', which training does not have"):
        open_data(f"hf:{tmp_path / 'saved'}")


def test_no_training_split(tmp_path: Path) -> None:
    saved = {"validation": made(4, CAT_DOG), "test": made(4, CAT_DOG)}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="a split named 'train', got 'validation', 'test'"):
        open_data(f"hf:{tmp_path / 'saved'}")
    splits = open_data(f"hf:{tmp_path / 'saved'}", whole=True)
    assert (splits.measured, splits.test is not None and len(splits.test)) == (("val", "test"), 4)
    datasets.DatasetDict({"test": saved["test"]}).save_to_disk(tmp_path / "one")
    splits = open_data(f"hf:{tmp_path / 'one'}", whole=True)
    assert (splits.measured, len(splits.train)) == (("test",), 4)


def test_bad_bytes_name_their_row(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": b"<html>", "path": None}] * 6, "label": [0, 1] * 3}
    features = datasets.Features({"image": datasets.Image(), "label": CAT_DOG})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    splits = open_data(f"hf:{tmp_path / 'saved'}")
    with pytest.raises(BadImageError, match=r"saved\[train\]\[\d\]: not an image"):
        splits.train[0]


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (
            datasets.Value("int64"),
            [0, 1, None, 0],
            r"\[train\]\[2\] has the label None in the column 'label'",
        ),
        (
            datasets.Value("float32"),
            [0.0, float("nan"), 1.0, float("nan")],
            r"\[1\] has the label nan .* 1 more rows",
        ),
        (datasets.Value("float32"), [0.0, 1.5, 1.0, 0.0], r"\[1\] has the label 1\.5"),
        (datasets.Value("int64"), [0, 1, 1, -1], r"\[3\] has the label -1 .*name another column by \?label="),
        (CAT_DOG, [0, 1, -1, 0], r"\[train\]\[2\] has the label -1"),
        (datasets.Value("string"), ["a", None, "b", "a"], r"\[1\] has the label None"),
        (datasets.Value("string"), ["a", " ", "b", "a"], r"\[1\] has the label ' '"),
        (CAT_DOG, [], r"saved has no rows in one of its splits"),
    ],
)
def test_rows_without_a_label_are_named(
    tmp_path: Path, kind: object, labels: list[object], message: str
) -> None:
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(labels))], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        open_data(f"hf:{tmp_path / 'saved'}")


def test_a_row_without_an_image_is_a_bad_image(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(7)] + [None], "label": [0, 1] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": CAT_DOG})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    splits = open_data(f"hf:{tmp_path / 'saved'}", test_fraction=0, val_fraction=0.25)
    images = splits.train if splits.train.name(len(splits.train) - 1).endswith("[7]") else splits.val
    with pytest.raises(BadImageError, match=r"saved\[train\]\[7\]: the row has no image"):
        images[len(images) - 1]


def test_an_empty_table_of_a_split_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    made(6, CAT_DOG).to_parquet(folder / "train.parquet")
    made(2, CAT_DOG).select([]).to_parquet(folder / "test.parquet")
    with pytest.raises(ValueError, match=r"\"test\" corresponds to no data"):
        open_data(f"hf:{folder}")
