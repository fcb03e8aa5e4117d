"""A run's images are known again: what changed is named, and no training image becomes a test image."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import webdataset
from made_pictures import picture, png

from vit_pytorch.data import (
    ImageRecord,
    Splits,
    find_duplicates,
    open_data,
    read_record,
    record_images,
)
from vit_pytorch.data.record import Changes, compare, digest

MakeFolder = Callable[..., Path]


def keys(splits: Splits) -> dict[str, list[str]]:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        split: [images.key(i) for i in range(len(images))]
        for split, images in parts.items()
        if images is not None
    }


@pytest.fixture
def folder(tmp_path: Path, make_folder: MakeFolder) -> Path:
    return make_folder(tmp_path / "data", cat=50, dog=50)


@pytest.fixture
def record(folder: Path) -> ImageRecord:
    return record_images(open_data(str(folder)), str(folder))


def test_a_record_is_written_and_read(tmp_path: Path, folder: Path, record: ImageRecord) -> None:
    record.write(tmp_path / "a.csv.gz")
    record.write(tmp_path / "b.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert read_record(tmp_path / "a.csv.gz") == record
    first = record.images[0]
    content = (folder / first.name).read_bytes()
    assert (first.split, first.label, first.size) == ("train", "cat", len(content))
    assert first.name == open_data(str(folder)).train.key(0)
    assert record.extent == "whole"
    assert len(record.images) == 100


def test_names_of_any_kind_are_kept(tmp_path: Path) -> None:
    for name in ("cat", 'a "quoted", class'):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, odd in enumerate(("a,b", 'c"d', "e\nf", "\udcff", "ü", "g h")):
            picture(i).save(tmp_path / "data" / name / f"{odd}.png")
    record = record_images(open_data(str(tmp_path / "data"), test_fraction=0), "x")
    record.write(tmp_path / "r")
    assert read_record(tmp_path / "r") == record


def test_one_more_file_moves_no_image_to_another_split(folder: Path, record: ImageRecord) -> None:
    before = keys(open_data(str(folder)))
    picture(7777).save(folder / "cat" / "000a.png")
    drawn = keys(open_data(str(folder)))
    assert set(drawn["test"]) & set(before["train"]), "splits that are drawn anew mix them"
    with pytest.warns(UserWarning, match=r"has changed since .* recorded: added \(1: cat/000a\.png\)$"):
        assert keys(open_data(str(folder), record=record)) == before


def test_every_kind_of_change_is_named(folder: Path, record: ImageRecord) -> None:
    before = keys(open_data(str(folder)))
    train, test = before["train"], before["test"]
    (folder / train[0]).unlink()
    picture(8888).save(folder / train[1])
    (folder / train[2]).rename(folder / "dog" / "moved.png")
    (folder / test[3]).rename(folder / "cat" / "renamed.png")
    picture(9999).save(folder / "dog" / "new.png")
    found = record_images(open_data(str(folder)), "").images
    changes = compare(record, found, by_split=False)
    assert changes == Changes(
        added=("dog/new.png",),
        removed=(train[0],),
        changed=(train[1],),
        relabeled=("dog/moved.png",),
        moved=((test[3], "cat/renamed.png"),),
    )
    with pytest.warns(UserWarning, match="has changed since its images were recorded") as caught:
        restored = keys(open_data(str(folder), record=record))
    assert str(caught[0].message).endswith(
        f"added (1: dog/new.png); removed (1: {train[0]}); changed (1: {train[1]}); "
        f"with another class or target (1: dog/moved.png); "
        f"moved within a class (1: {test[3]} -> cat/renamed.png)"
    )
    assert restored["train"] == train[3:]
    assert restored["val"] == before["val"]
    assert restored["test"] == [*test[:3], "cat/renamed.png", *test[4:]]
    assert str(compare(record, record.images)) == ""
    assert not compare(record, record.images)


def test_the_folder_may_be_elsewhere(tmp_path: Path, folder: Path, record: ImageRecord) -> None:
    before = keys(open_data(str(folder)))
    folder.rename(tmp_path / "elsewhere")
    assert keys(open_data(str(tmp_path / "elsewhere"), record=record, seed=9)) == before


def test_images_that_are_in_another_split_of_the_data(tmp_path: Path, make_folder: MakeFolder) -> None:
    for split, count in (("train", 4), ("test", 2)):
        make_folder(tmp_path / split, cat=count, dog=count)
    (tmp_path / "test" / "cat" / "000.png").unlink()
    picture(50).save(tmp_path / "test" / "cat" / "000.png")
    record = record_images(open_data(str(tmp_path)), "")
    (tmp_path / "test" / "cat" / "000.png").rename(tmp_path / "train" / "cat" / "z.png")
    with pytest.raises(ValueError, match="images of the test split are in test and train of the data now"):
        open_data(str(tmp_path), record=record)


def test_data_without_the_images_of_a_record(
    tmp_path: Path, make_folder: MakeFolder, record: ImageRecord
) -> None:
    other = make_folder(tmp_path / "other", cat=5, dog=5)
    for path in other.rglob("*.png"):
        picture(int(path.stem) + 5000).save(path)
    with pytest.raises(
        ValueError, match=r"none of the 72 images of the train split is there any more: .*changed"
    ):
        open_data(str(other), record=record)
    (other / "dog").rename(other / "wolf")
    with pytest.raises(ValueError, match=r"2: cat, dog; lacking are \(1: dog\), new are \(1: wolf\)"):
        open_data(str(other), record=record)


def test_unreadable_files_are_listed(folder: Path) -> None:
    splits = open_data(str(folder))
    path = folder / splits.train.key(0)
    path.write_bytes(b"")
    record = record_images(splits, "")
    assert (record.images[0].size, record.images[0].digest) == (0, "unreadable")
    assert find_duplicates(record) == ((), ())


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", b"\x1f\x8b", bytes.fromhex("1f8b08000000000000ff")], ids=range(4)
)
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.csv\.gz is no record of images"):
        read_record(tmp_path / "images.csv.gz")


def test_duplicates_across_splits_and_classes(tmp_path: Path, make_folder: MakeFolder) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        make_folder(tmp_path / split, cat=count, dog=count)
    picture(1).save(tmp_path / "train" / "dog" / "x.png")
    found = find_duplicates(record_images(open_data(str(tmp_path)), ""))
    assert found.across_classes == (
        ("train: train/cat/001.png", "train: train/dog/x.png", "val: val/cat/001.png"),
    )
    assert (
        "train: train/dog/000.png",
        "val: val/dog/000.png",
        "test: test/dog/000.png",
    ) in found.across_splits
    assert len(found.across_splits) == 4
    assert str(found).startswith("4 images are in several splits (train: train/cat/000.png = val: val/cat/")


def test_many_images_of_one_content_are_a_short_line(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Which shows images of different splits, and of different classes."""
    for split in ("train", "val"):
        make_folder(tmp_path / split, cat=9, dog=9)
        for file in (tmp_path / split).rglob("*.png"):
            picture(1).save(file)
    found = str(find_duplicates(record_images(open_data(str(tmp_path)), "")))
    assert found == (
        "1 images are in several splits (train: train/cat/000.png = val: val/cat/000.png = "
        "train: train/cat/001.png = train: train/cat/002.png and 32 more); "
        "1 images are in several classes (train: train/cat/000.png = train: train/dog/000.png = "
        "train: train/cat/001.png = train: train/cat/002.png and 32 more)"
    )


def test_large_files_are_known_by_their_ends() -> None:
    content = bytearray(torch.arange(100_000, dtype=torch.int32).numpy().tobytes())
    whole, ends = digest(bytes(content), "whole"), digest(bytes(content), "ends")
    assert whole[0] == ends[0] == 400_000
    content[200_000] ^= 1
    assert digest(bytes(content), "whole") != whole
    assert digest(bytes(content), "ends") == ends
    content[-1] ^= 1
    assert digest(bytes(content), "ends") != ends
    assert digest(b"abc", "ends") == digest(b"abc", "whole")


def test_digits_and_other_images_in_memory() -> None:
    before = open_data("digits", seed=3)
    record = record_images(before, "digits")
    assert keys(open_data("digits", seed=4, record=record)) == keys(before)


def test_shards(tmp_path: Path) -> None:
    def write(count: int) -> None:
        with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
            for i in range(count):
                writer.write({"__key__": f"{i:03}", "png": png(i), "cls": i % 2})

    write(40)
    before = open_data(f"wds:{tmp_path}/s.tar")
    record = record_images(before, "")
    assert record.images[0].name.startswith("s.tar:0")
    write(41)
    with pytest.warns(UserWarning, match=r"added \(1: s\.tar:040\)"):
        assert keys(open_data(f"wds:{tmp_path}/s.tar", record=record)) == keys(before)


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = {
        "image": [{"bytes": png(i), "path": None} for i in range(30)],
        "label": [i % 2 for i in range(30)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(tmp_path / "saved")
    before = open_data(f"hf:{tmp_path}/saved")
    record = record_images(before, "")
    whole.select(range(1, 30)).save_to_disk(tmp_path / "less")
    assert keys(open_data(f"hf:{tmp_path}/saved", seed=5, record=record)) == keys(before)
    # rows have no names, but contents
    with pytest.warns(UserWarning, match=r"removed \(1: \[train\]\[0\]\); moved within a class \(29: "):
        restored = open_data(f"hf:{tmp_path}/less", record=record)
    places = [int(key[8:-1]) for key in keys(before)["test"]]
    assert [int(key[8:-1]) + 1 for key in keys(restored)["test"]] == [place for place in places if place]
