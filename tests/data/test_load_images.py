from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vit_pytorch.data import BadImageError, decode_image, find_images, load_images


@pytest.fixture
def folder(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    make_folder(tmp_path, a=2, b=1)
    return tmp_path


def test_files_folders_and_patterns_each_once(folder: Path) -> None:
    first, second, third = folder / "a" / "000.png", folder / "a" / "001.png", folder / "b" / "000.png"
    (folder / "a" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"left out: file of another type \(1: \S*notes\.txt\)"):
        assert find_images([folder]) == [first, second, third]
    (folder / "a" / "notes.txt").unlink()
    assert find_images([third, folder]) == [third, first, second]
    assert find_images([f"{folder}/*/000.png"]) == [first, third]
    assert find_images([f"{folder}/**/*.png"]) == [first, second, third]
    assert find_images([f"{folder}/[ab]"]) == [first, second, third]


def test_images_come_with_their_paths(folder: Path) -> None:
    pairs = list(load_images([folder], channels=1))
    assert [path for path, _ in pairs] == find_images([folder])
    assert all(torch.equal(image, decode_image(path, channels=1)) for path, image in pairs)


def test_names_with_brackets_are_taken_as_they_are(folder: Path) -> None:
    odd = folder / "x[1].png"
    (folder / "a" / "000.png").rename(odd)
    assert find_images([odd]) == [odd]


def test_nothing_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such image, folder or pattern: .*none\.png"):
        find_images([folder / "none.png"])
    with pytest.raises(FileNotFoundError, match=r"none\*\.png"):
        find_images([f"{folder}/none*.png"])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image files"):
        find_images([folder / "empty"])


def test_bad_file_stops_or_is_skipped(folder: Path) -> None:
    bad = folder / "a" / "001.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(BadImageError, match=str(bad)):
        list(load_images([folder]))
    with pytest.warns(UserWarning, match=f"skipped bad image {bad}"):
        left = [path for path, _ in load_images([folder], on_bad="skip")]
    assert left == [folder / "a" / "000.png", folder / "b" / "000.png"]
