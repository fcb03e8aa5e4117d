"""Downloads that end too early."""

import time
from pathlib import Path

import pytest

from tests.papers.reference import images
from tests.pretrained.conftest import build, model
from tests.pretrained.hub_server import HubServer, server
from vit_pytorch import ViT, load_pretrained
from vit_pytorch.cli import Status
from vit_pytorch.cli.errors import describe_error

__all__ = ["model", "server"]
NAME = "me/model"
# the client's own, in sending a large file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.mark.parametrize("how", ["class", "checkpoint"])
def test_a_connection_that_is_cut(
    server: HubServer, model: ViT, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection to the Hugging Face Hub is cut while weights are fetched.

    Here: one sentence; nothing of the file is in the cache, and the next try gets all of it
    """
    monkeypatch.setattr(time, "sleep", lambda _: None)
    model.push_to_hub(NAME, token="hf_token")
    server.cut_after = 1000

    def load() -> ViT:
        if how == "class":
            return ViT.from_pretrained(NAME, token=False)
        other = build().eval()
        load_pretrained(other, f"hf-hub:{NAME}")
        return other

    with pytest.raises(OSError, match=r"cannot get .*me/model: the connection .* was lost \(.*\); try") as e:
        load()
    assert "\n" not in str(e.value)
    assert describe_error(e.value)[1] is Status.MODEL
    kept = [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.suffix == ".incomplete"]
    (digest,) = server.large
    assert not [path for path in kept if path.name == digest]
    assert not [path for path in kept if path.name == "model.safetensors"]
    server.cut_after = None
    assert load()(x := images(48, 48)).equal(model(x))
