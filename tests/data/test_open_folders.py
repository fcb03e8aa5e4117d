import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vit_pytorch.data import ArrayImages, FileImages, ImageDataset, Splits, decode_image, open_data

MakeFolder = Callable[..., Path]


def paths(images: ImageDataset) -> set[Path]:
    assert isinstance(images, FileImages)
    return set(images.paths)


def test_digits_are_split_by_class() -> None:
    splits = open_data("digits", seed=1)
    assert splits.test is not None
    assert splits.classes == tuple("0123456789")
    sizes = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert sum(sizes) == 1797
    assert abs(sizes[2] - 0.2 * 1797) < 5
    assert abs(sizes[1] - 0.1 * 0.8 * 1797) < 5
    whole = torch.cat([part.labels for part in (splits.train, splits.val, splits.test)]).bincount()
    assert torch.allclose(splits.test.labels.bincount() / whole, torch.tensor(0.2), atol=0.01)
    image, label = splits.train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.uint8
    assert isinstance(splits.train, ArrayImages)
    assert splits.train.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    assert label == int(splits.train.labels[0])


def test_digits_splits_share_no_image_and_follow_the_seed() -> None:
    first, again, other = (open_data("digits", seed=seed) for seed in (0, 0, 1))
    places = [
        part.positions for part in (first.train, first.val, first.test) if isinstance(part, ArrayImages)
    ]
    assert torch.equal(torch.cat(places).sort().values, torch.arange(1797))
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.val.labels, other.val.labels)


def test_folder_without_splits(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, dog=20, cat=10)
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert splits.classes == ("cat", "dog")
    assert splits.test.labels.bincount().tolist() == [2, 4]
    assert splits.val.labels.bincount().tolist() == [1, 2]
    assert splits.train.labels.bincount().tolist() == [7, 14]
    assert len(paths(splits.train) | paths(splits.val) | paths(splits.test)) == 30
    image, label = splits.train[0]
    path = Path(splits.train.name(0))
    assert splits.classes[label] == path.parent.name
    assert torch.equal(image, decode_image(path))


def test_classes_whose_names_differ_in_case_only(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, Cat=5, cat=5, dog=5)
    with pytest.warns(UserWarning, match="differ only in case, spaces, .*: 'Cat', 'cat'$"):
        assert open_data(str(tmp_path)).classes == ("Cat", "cat", "dog")


def test_folder_with_splits(tmp_path: Path, make_folder: MakeFolder) -> None:
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        make_folder(tmp_path / name, cat=count, dog=count)
    splits = open_data(f"folder:{tmp_path}")
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    assert all(path.is_relative_to(tmp_path / "val") for path in paths(splits.val))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "valid", "TEST"), ("training", "Validation", "testing"), ("TRAINING", "dev", "Test")],
)
def test_splits_by_their_other_names(
    tmp_path: Path, make_folder: MakeFolder, train: str, val: str, test: str
) -> None:
    for name, count in ((train, 3), (val, 2), (test, 1)):
        make_folder(tmp_path / name, cat=count, dog=count)
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert splits.classes == ("cat", "dog")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 4, 2]
    assert all(path.is_relative_to(tmp_path / val) for path in paths(splits.val))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "val", "valid"), "one part for val, got 'val' and 'valid'"),
        (("train", "Train", "test"), "one part for train, got 'Train' and 'train'"),
        (("train", "bus", "car"), "got train beside 'bus', 'car': remove what is no split; if they are"),
        (("cat", "dog", "Test"), "has Test, but no folder 'train'; if they are classes, put all class"),
        (("train2017", "val2017"), "names that are not known: 'train2017', 'val2017'; splits are named"),
        (("trainval", "cat"), "names that are not known: 'trainval'; splits are named train, val and test"),
        (("cars_train", "cars_test"), "names that are not known: 'cars_test', 'cars_train'"),
        (("eval", "holdout"), "names that are not known: 'eval', 'holdout'"),
        (("trainA", "testA"), "names that are not known: 'testA', 'trainA'"),
        (("fold1", "fold2"), r"'fold1', 'fold2'\) that all hold the same folders \('cat', 'dog'\): which"),
    ],
)
def test_what_looks_like_splits_and_is_not_understood(
    tmp_path: Path, make_folder: MakeFolder, names: tuple[str, ...], message: str
) -> None:
    for name in names:
        make_folder(tmp_path / name, cat=3, dog=3)
    with pytest.raises(ValueError, match=message):
        open_data(str(tmp_path))


def test_classes_that_are_named_like_splits(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", bus=10, test=10, train=10)
    make_folder(tmp_path / "test", bus=1, test=1, train=1)
    assert open_data(str(tmp_path)).classes == ("bus", "test", "train")
    make_folder(tmp_path / "plain", bullet_train=10, test_tube=10, trains=10, valley=10)
    assert open_data(str(tmp_path / "plain")).classes == ("bullet_train", "test_tube", "trains", "valley")


@pytest.mark.parametrize(
    "below", [{"cat": ("2019", "2020"), "dog": ("2019",)}, {"cat": ("2020",), "dog": ("2020",)}]
)
def test_folders_below_classes(
    tmp_path: Path, make_folder: MakeFolder, below: dict[str, tuple[str, ...]]
) -> None:
    for name, years in below.items():
        make_folder(tmp_path / name, **dict.fromkeys(years, 10))
    assert open_data(str(tmp_path)).classes == ("cat", "dog")
    make_folder(tmp_path / "train" / "cat", a=9, b=9)
    make_folder(tmp_path / "train" / "dog", a=9, b=9)
    for name in below:
        shutil.rmtree(tmp_path / name)
    assert open_data(str(tmp_path)).classes == ("cat", "dog")


def test_without_labels_folders_may_hold_the_same_folders(tmp_path: Path, make_folder: MakeFolder) -> None:
    for name in ("fold1", "fold2"):
        make_folder(tmp_path / name, cat=3, dog=3)
    splits = open_data(str(tmp_path), unlabelled=True)
    assert splits.classes == ()
    assert "which of them are classes" in splits.unlabelled


def test_missing_validation_folder_is_made_from_training(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", cat=10, dog=10)
    make_folder(tmp_path / "test", cat=1, dog=1)
    splits = open_data(str(tmp_path))
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [18, 2, 2]


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_training_does_not_know(tmp_path: Path, make_folder: MakeFolder, part: str) -> None:
    make_folder(tmp_path / "train", ant=3, cat=3, dog=3)
    make_folder(tmp_path / part, ant=2, bee=2, cat=2, dog=2)
    with pytest.raises(
        ValueError, match=f"{part} must have the 3 classes of training, but has besides 'bee'"
    ):
        open_data(str(tmp_path))


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_class_without_images_in_validation_or_test(
    tmp_path: Path, make_folder: MakeFolder, part: str, empty: bool
) -> None:
    make_folder(tmp_path / "train", ant=3, cat=3, dog=3)
    make_folder(tmp_path / part, ant=2, dog=1)
    if empty:
        (tmp_path / part / "cat").mkdir()
    with pytest.warns(UserWarning, match=f"{part} has no images of 'cat'"):
        splits = open_data(str(tmp_path))
    assert splits.classes == ("ant", "cat", "dog")
    assert getattr(splits, part).labels.tolist() == [0, 0, 2]


def test_data_that_are_measured_need_no_training_split(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "val", cat=2)
    make_folder(tmp_path / "Test", dog=3)
    with pytest.warns(UserWarning, match="has no images of") as warned:
        splits = open_data(str(tmp_path), whole=True)
    assert sorted(str(each.message).rpartition("/")[2] for each in warned) == [
        "Test has no images of 'cat'",
        "val has no images of 'dog'",
    ]
    assert (splits.measured, splits.classes) == (("val", "test"), ("cat", "dog"))
    assert splits.test is not None
    assert [len(part) for part in (splits.val, splits.test)] == [2, 3]
    with pytest.raises(ValueError, match=r"(val|Test) holds no videos: no file is of a known type"):
        open_data(f"video:{tmp_path}", whole=True)
    make_folder(tmp_path, cow=1)
    with pytest.raises(
        ValueError, match="must hold folders of splits or one folder per class, got val, Test"
    ):
        open_data(str(tmp_path), whole=True)


def test_validation_without_training(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "val", cat=3, dog=3)
    with pytest.raises(ValueError, match="no folder 'train'"):
        open_data(str(tmp_path))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one folder per class, got none"):
        open_data(str(tmp_path))


def test_class_without_images(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=3, dog=3)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="class 'eel' has no images"):
        open_data(str(tmp_path))


def test_one_image(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=1)
    with pytest.raises(ValueError, match=r"class 'cat' has 1 image left .*000\.png"):
        open_data(str(tmp_path))


def test_one_class(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=10)
    with pytest.raises(ValueError, match=r"at least 2 classes; all 7 training images are of class 'cat'"):
        open_data(str(tmp_path))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_data(str(tmp_path / "none"))


def test_fraction_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"validation fraction must be between 0 and 1, got 1\.5"):
        open_data("digits", val_fraction=1.5)


def test_label_out_of_range() -> None:
    pixels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    good = ArrayImages(pixels, torch.tensor([0, 1, 0, 1]), origin="good")
    wrong = ArrayImages(pixels, torch.tensor([0, 1, 2, -1]), origin="wrong")
    message = r"labels must be 0 to 1 for 2 classes; wrong\[2\] in val has label 2 \(2 such images\)"
    with pytest.raises(ValueError, match=message):
        Splits(classes=("a", "b"), train=good, val=wrong)


def test_empty_split() -> None:
    pixels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    good = ArrayImages(pixels, torch.tensor([0, 1]), origin="good")
    with pytest.raises(ValueError, match="the val split has no images"):
        Splits(classes=("a", "b"), train=good, val=good.subset(torch.tensor([], dtype=torch.long)))
