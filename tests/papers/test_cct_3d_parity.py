"""The 3-D CCT computes what the public package's does, and the 2-D one on single frames."""

from __future__ import annotations

import pytest
import torch

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import cct_3d, load_pretrained
from vit_pytorch.cct import CCT
from vit_pytorch.cct_3d import CCT3D
from vit_pytorch.pretrained import to_format

FORMAT = "Compact-Transformers"
SMALL = {
    "img_size": (20, 16),
    "embedding_dim": 48,
    "n_conv_layers": 2,
    "kernel_size": 3,
    "stride": 1,
    "padding": 1,
    "num_layers": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "num_classes": 7,
}


def build(**changes: object) -> CCT3D:
    model = CCT3D(**{**SMALL, "num_frames": 6, **changes})
    randomise(model)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["learnable", "sine", "none"])
def test_one_frame_is_an_image(positions: str) -> None:
    flat = randomise(CCT(**SMALL, positional_embedding=positions))
    deep = CCT3D(**SMALL, num_frames=1, frame_kernel_size=1, positional_embedding=positions).eval()
    state = {name: part.unsqueeze(2) if part.ndim == 4 else part for name, part in flat.state_dict().items()}
    deep.load_state_dict(state)
    x = torch.randn(2, 3, 20, 16)
    assert difference(deep(x[:, :, None]), flat(x)) < TOLERANCE


@torch.inference_mode()
def test_logits_equal_the_public_packages() -> None:
    config, state, golden = read_golden("public_cct_3d")
    model = CCT3D(**config).eval()
    report = load_pretrained(model, state, grid="model")
    assert report.format == FORMAT
    assert [*report.kept, *report.dropped, *report.resized] == []
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    written = to_format(model, FORMAT)
    assert written.keys() == state.keys()
    assert all(written[name].equal(tensor) for name, tensor in state.items())


@torch.inference_mode()
def test_tokenizer_is_its_convolutions_in_loops() -> None:
    """The largest of a window, of sums over a window of three frames that is zero outside of the video."""
    model = build(n_conv_layers=1, img_size=(6, 5), num_frames=3, frame_pooling_kernel_size=2)
    (conv,) = model.patch_embed.convs
    video = torch.randn(3, 3, 6, 5)
    padded = torch.zeros(3, 5, 8, 7)
    padded[:, 1:4, 1:7, 1:6] = video
    sums = torch.empty(48, 3, 6, 5)
    for t, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(6), torch.arange(5)).tolist():
        sums[:, t, y, x] = (conv.weight * padded[:, t : t + 3, y : y + 3, x : x + 3]).sum((1, 2, 3, 4))
    want = []
    for t in range(4):
        for y in range(0, 6, 2):
            for x in range(0, 5, 2):
                frames = sums[:, max(t - 1, 0) : t + 1]
                window = frames[:, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                want.append(window.amax((1, 2, 3)).clamp(min=0))
    assert model.grid.shape == (4, 3, 3)
    assert difference(model.patch_embed(video[None])[0], torch.stack(want)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["learnable", "sine"])
def test_smaller_videos_have_the_positions_of_their_places(positions: str) -> None:
    model = build(positional_embedding=positions)
    assert model.grid.shape == (6, 5, 4)
    table = model.positions.table.unflatten(1, (6, 5, 4))[:, :4, :3, :4].flatten(1, 3)
    x = torch.randn(2, 3, 4, 12, 16)
    torch.testing.assert_close(model.embed(x), model.patch_embed(x) + table)
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize("layers", [2, 4, 6, 7, 8, 14, 16])
def test_sizes(layers: int) -> None:
    with torch.device("meta"):
        model = getattr(cct_3d, f"cct_{layers}")(img_size=32, num_frames=4, n_conv_layers=2)
    assert type(model) is CCT3D
    assert len(model.blocks) == layers
    assert [conv.kernel_size for conv in model.patch_embed.convs] == [(3, 3, 3)] * 2


def test_video_that_leaves_no_token_is_refused() -> None:
    model = build(frame_padding=0)
    with pytest.raises(ValueError, match=r"image size \(2, 20, 16\) leaves no token"):
        model(torch.randn(1, 3, 2, 20, 16))
