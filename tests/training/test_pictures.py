"""Names in pictures: in any script, and as they are written."""

import unicodedata
from pathlib import Path

import pytest
import torch
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from vit_pytorch.lettering import letter
from vit_pytorch.training.evaluation import ClassEvaluation
from vit_pytorch.training.pictures import pictures_of

# for private use: no font of a system has them
NOWHERE = ("\U000f1234", "\U000f4321")


def drawn(names: tuple[str, ...], file: Path) -> bytes:
    confusion = torch.eye(len(names), dtype=torch.int64)
    pictures_of(ClassEvaluation(names, confusion, 0.0), [])["confusion.png"](file)
    return Image.open(file).tobytes()


def test_letters_that_no_font_has_are_told_apart(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no installed font has .*: pictures show letters by their numbers"):
        families, names = letter([f"a{NOWHERE[0]}", NOWHERE[1], "b"])
    assert names == [r"a\U000f1234", r"\U000f4321", "b"]
    assert families == letter(["b"])[0]
    with pytest.warns(UserWarning, match="no installed font"):
        pictures = [drawn(names, tmp_path / "x.png") for names in (NOWHERE, NOWHERE[::-1])]
    assert pictures[0] != pictures[1]


def test_a_font_that_has_the_letters_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = get_font(findfont(FontProperties())).get_charmap()
    # comes with matplotlib, too
    other = get_font(findfont("STIXGeneral")).get_charmap()
    name = next(chr(code) for code in other if code not in own and unicodedata.category(chr(code)) == "Lo")
    files: list[str] = []
    monkeypatch.setattr("matplotlib.font_manager.get_font", lambda file: files.append(file) or get_font(file))
    families, names = letter([name])
    # no font is opened when nothing is missing any more
    assert ord(name) in get_font(files[-1]).get_charmap()
    assert names == [name]
    assert len(families) == len(letter(["b"])[0]) + 1
    # a glyph that is missing is a warning, which is an error here
    drawn((name, "b"), tmp_path / "x.png")


def test_dollar_signs_begin_no_formula(tmp_path: Path) -> None:
    pictures = [drawn((name, "b"), tmp_path / "x.png") for name in ("$a$", "a", r"$\x$")]
    assert pictures[0] != pictures[1]
