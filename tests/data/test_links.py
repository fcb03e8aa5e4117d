"""Links, pipes and devices among the files of a data set: nothing twice, nothing endless, nothing unnamed."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vit_pytorch.create import read_config
from vit_pytorch.data import (
    BadImageError,
    FileImages,
    ImageLoader,
    Preprocessing,
    VideoFiles,
    VolumeFiles,
    decode_image,
    find_images,
    load_images,
    open_data,
)
from vit_pytorch.data.listing import BESIDE_SPLITS, DANGLING, HIDDEN, IRREGULAR, STRAY, TWICE, UNKNOWN

MakeFolder = Callable[..., Path]


def names(folder: Path, *, expect: str) -> tuple[list[str], dict[str, list[str]]]:
    """All images of a data set and what is left out, both relative to its folder."""
    with pytest.warns(UserWarning, match=expect):
        splits = open_data(str(folder), val_fraction=0.25, test_fraction=0.25)
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    found = sorted(
        str(path.relative_to(folder)) for part in parts if isinstance(part, FileImages) for path in part.paths
    )
    left_out = {
        reason: [str(path.relative_to(folder)) for path in paths] for reason, paths in splits.left_out.items()
    }
    return found, left_out


def test_what_is_hidden_is_named(tmp_path: Path, make_folder: MakeFolder) -> None:
    """Also folders of two dots and more; a hidden file of another type is none that anybody misses."""
    make_folder(tmp_path, **{"cat": 4, "dog": 4, "..eel": 2, "cat/.checkpoints": 1})
    (tmp_path / "dog" / "._000.png").write_bytes(b"x")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    found, left_out = names(tmp_path, expect=r"hidden \(3: .*eel, .*checkpoints, .*_000\.png\)")
    assert len(found) == 8
    assert left_out == {HIDDEN: ["..eel", "cat/.checkpoints", "dog/._000.png"]}
    with pytest.warns(UserWarning, match=r"hidden \(3: "):
        assert len(find_images([tmp_path])) == 8


@pytest.mark.parametrize("unlabelled", [False, True])
def test_images_beside_folders_of_splits(tmp_path: Path, make_folder: MakeFolder, unlabelled: bool) -> None:
    make_folder(tmp_path / "train", cat=4, dog=4)
    make_folder(tmp_path, cat=1)
    (tmp_path / "cat" / "000.png").rename(tmp_path / "beside.png")
    (tmp_path / "cat").rmdir()
    if unlabelled:
        (tmp_path / "train" / "dog").rename(tmp_path / "train" / "cat" / "deep")
    with pytest.warns(UserWarning, match="file beside the folders of splits"):
        splits = open_data(str(tmp_path), unlabelled=unlabelled)
    assert splits.left_out == {BESIDE_SPLITS: [tmp_path / "beside.png"]}
    assert splits.classes == (() if unlabelled else ("cat", "dog"))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/up", ".."),
        ("cat/far", "../.."),
        ("cat/deep/up", "../.."),
        ("cat/self", "."),
        ("cat/dog", "../dog"),
        ("loop", "."),
        ("above", ".."),
    ],
)
def test_a_folder_is_visited_once(tmp_path: Path, make_folder: MakeFolder, link: str, target: str) -> None:
    folder = make_folder(tmp_path / "data", cat=8, dog=8)
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(target)
    (folder / "dog" / "back").symlink_to("../cat")
    found, left_out = names(
        folder, expect=r"left out of .*data: link to a folder that is there already \(2: "
    )
    assert found == [f"{name}/{i:03}.png" for name in ("cat", "dog") for i in range(8)]
    assert {reason: sorted(paths) for reason, paths in left_out.items()} == {
        TWICE: sorted(["dog/back", link])
    }


def test_links_between_splits(tmp_path: Path, make_folder: MakeFolder) -> None:
    for split, count in (("train", 4), ("val", 2)):
        make_folder(tmp_path / split, cat=count, dog=count)
    (tmp_path / "train" / "cat" / "more").symlink_to("../../val/cat")
    found, left_out = names(
        tmp_path, expect=r"link to a folder that is there already \(1: \S*train/cat/more\)"
    )
    assert len(found) == 12
    assert left_out == {TWICE: ["train/cat/more"]}
    (tmp_path / "test").symlink_to("val")
    with pytest.raises(ValueError, match=r"test and .*val are the same folder"):
        open_data(str(tmp_path))


def test_two_classes_that_are_one_folder(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=4, dog=4)
    (tmp_path / "puma").symlink_to("cat")
    with pytest.raises(ValueError, match=r"puma and .*cat are the same folder"):
        open_data(str(tmp_path))


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path: Path, make_folder: MakeFolder) -> None:
    store = make_folder(tmp_path / "store", cat=6, dog=6)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(6):
        (tmp_path / "data" / "cat" / f"{i}.png").symlink_to(store / "cat" / f"{i:03}.png")
    (tmp_path / "data" / "dog" / "all").symlink_to(store / "dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = open_data(str(tmp_path / "data"), test_fraction=0)
    assert splits.left_out == {}
    assert len(splits.train) + len(splits.val) == 12
    splits.train[0]


def test_what_is_no_regular_file_is_left_out_and_named(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=8, dog=8)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "cat" / "round.png").symlink_to("round.png")
    (tmp_path / "eel").symlink_to("nowhere")
    (tmp_path / "cat" / "notes.txt").write_text("none")
    (tmp_path / "loose.png").write_bytes((tmp_path / "cat" / "000.png").read_bytes())
    (tmp_path / "README.md").write_text("beside the classes, and no image")
    found, left_out = names(tmp_path, expect=r"no regular file \(2: \S*cat/pipe\.png, \S*zero\.png\)")
    assert len(found) == 16
    assert left_out == {
        STRAY: ["loose.png"],
        DANGLING: ["eel", "cat/gone.png", "cat/round.png"],
        IRREGULAR: ["cat/pipe.png", "cat/zero.png"],
        UNKNOWN: ["cat/notes.txt"],
    }


def test_files_without_extension_are_known_by_their_content(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=8, dog=8)
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / "n02085620_7")
    (tmp_path / "cat" / "Makefile").write_text("all:")
    (tmp_path / "cat" / "empty").touch()
    found, left_out = names(tmp_path, expect=r"file of another type \(2: ")
    assert "cat/n02085620_7" in found
    assert left_out == {UNKNOWN: ["cat/Makefile", "cat/empty"]}


def test_prediction_leaves_the_same_out(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "data", cat=3, dog=2)
    (folder / "cat" / "up").symlink_to("..")
    (folder / "dog" / "above").symlink_to("../..")
    os.mkfifo(folder / "dog" / "pipe.png")
    with pytest.warns(
        UserWarning, match=r"left out: link to a folder .* \(2: .*; no regular file \(1: \S*pipe"
    ):
        assert len(find_images([folder])) == 5


@pytest.mark.parametrize("files", [FileImages, VideoFiles, VolumeFiles])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "it is no regular file"),
        (os.mkdir, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.symlink_to("nowhere"), "it cannot be read: No such file or directory"),
        (lambda path: path.symlink_to(path.name), "it cannot be read: Too many levels of symbolic links"),
        (lambda path: None, "it has gone since it was listed"),
    ],
)
def test_such_a_file_is_a_bad_image_where_it_is_read(
    tmp_path: Path, files: type[FileImages], make: Callable[[Path], None], reason: str
) -> None:
    """It may have been replaced since it was listed."""
    path = tmp_path / "a.png"
    make(path)
    frames = None if files is FileImages else 2
    loader = ImageLoader(
        files([path], torch.tensor([0])),
        Preprocessing((8, 8), frames=frames),
        None,
        batch_size=1,
        num_classes=2,
    )
    with pytest.raises(BadImageError, match=f"bad {files.kind} {path}: {reason}"):
        next(iter(loader))


def test_unreadable_file_is_skipped_and_named(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(make_folder(tmp_path, cat=2, dog=2).rglob("*.png"))
    read = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path == paths[1]:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadImageError, match=r"001\.png: it cannot be read: Permission denied"):
        decode_image(paths[1])
    loader = ImageLoader(
        FileImages(paths, torch.arange(4)),
        Preprocessing((8, 8)),
        None,
        batch_size=4,
        num_classes=4,
        on_bad="skip",
    )
    with pytest.warns(UserWarning, match=r"skipped bad image .*001\.png: it cannot be read"):
        ((_, labels),) = list(loader)
    assert labels.tolist() == [0, 2, 3]
    assert loader.bad == {str(paths[1]): "it cannot be read: Permission denied"}
    with pytest.warns(UserWarning, match=r"skipped bad image .*001\.png: it cannot be read"):
        assert len(list(load_images([tmp_path], on_bad="skip"))) == 3


def test_a_lack_of_handles_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        decode_image(path)


def test_a_link_to_nothing_that_is_named_is_a_bad_image(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, cat=2)
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere")
    bad: list[BadImageError] = []
    for names in (
        [tmp_path / "cat" / "*.png"],
        [tmp_path / "cat" / "gone.png", *tmp_path.glob("cat/0*.png")],
    ):
        assert len(list(load_images(names, on_bad=bad.append))) == 2
    assert len(bad) == 2
    assert "gone.png: it cannot be read: No such file" in str(bad[0])


@pytest.mark.parametrize("kind", ["csv", "idx", "model"])
def test_pipes_instead_of_files_are_not_waited_for(kind: str, tmp_path: Path) -> None:
    name = {"csv": "list.csv", "idx": "train-images-idx3-ubyte", "model": "config.json"}[kind]
    os.mkfifo(tmp_path / name)
    if kind == "csv":
        with pytest.raises(FileNotFoundError, match=r"no such table: .*list\.csv \(it is no regular file\)"):
            open_data(f"csv:{tmp_path / name}")
    elif kind == "idx":
        with pytest.raises(ValueError, match=r"must hold one file .*, got none"):
            open_data(f"idx:{tmp_path}")
    else:
        with pytest.raises(ValueError, match=r"config\.json is no regular file"):
            read_config(tmp_path)
