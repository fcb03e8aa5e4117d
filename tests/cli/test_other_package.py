"""Another project has the import name of this one; where both are installed, the command says so."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import proven_vit
import vit_pytorch
from vit_pytorch import cli, extras


def test_a_package_in_front_of_this_one(tmp_path: Path) -> None:
    other = tmp_path / "vit_pytorch" / "__init__.py"
    other.parent.mkdir()
    other.write_text("class ViT: ...\n")
    root = Path(vit_pytorch.__file__).parents[1]
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]"
    code = f"{paths}; import proven_vit; sys.exit(proven_vit.main())"
    # -S: an editable install would offer this package's modules inside the other one
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == cli.Status.USAGE
    assert f"{other} is of another package, vit-pytorch" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_beside_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "version", lambda name: "1.26.14")
    assert cli.main(["models", "simple_vit_tiny*"]) == 0
    assert "vit-pytorch 1.26.14 is installed here, too" in capsys.readouterr().err


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vit", "--version"])
    assert proven_vit.main() == 0
    assert capsys.readouterr().out == f"vit_pytorch {vit_pytorch.__version__}\n"


def test_ctrl_c_while_the_package_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt(name)

    importing = ModuleType("vit_pytorch.cli")
    importing.__getattr__ = interrupt  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "vit_pytorch.cli", importing)
    assert proven_vit.main() == 130
    assert capsys.readouterr().err == "vit: error: interrupted\n"
