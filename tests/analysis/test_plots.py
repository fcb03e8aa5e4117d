"""The figures show the numbers that they are given."""

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vit_pytorch import analysis
from vit_pytorch.analysis import to_pictures


def rendered(figure: Figure) -> Figure:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")
    return figure


def shown(figure: Figure, place: int) -> list[np.ndarray]:
    """Give what is drawn at a place of the figure, the lowest first."""
    return [image.get_array() for image in figure.axes[place].images]


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_distance_is_a_dot_for_each_head():
    distance = draw(5, 3)
    figure = rendered(analysis.plot_attention_distance(distance))
    dots = figure.axes[0].collections[0].get_offsets()
    layers = torch.arange(5.0)[:, None].expand(-1, 3)
    np.testing.assert_allclose(dots, torch.stack([layers.flatten(), distance.flatten()], dim=1))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), distance.mean(dim=1))


@pytest.mark.parametrize(
    ("plot", "options"),
    [(analysis.plot_rollout, {}), (analysis.plot_class_relevance, {"classes": ["cat", "dog"]})],
)
def test_heat_lies_over_the_pictures(plot, options):
    heat, pictures = draw(2, 8, 6), draw(2, 3, 8, 6)
    figure = rendered(plot(heat, pictures, **options))
    assert len(figure.axes) == 4
    for image in range(2):
        (above,) = shown(figure, image)
        np.testing.assert_allclose(above, pictures[image].movedim(0, -1))
        grey, over = shown(figure, 2 + image)
        np.testing.assert_allclose(grey, pictures[image].mean(dim=0), rtol=1e-6)
        low, high = heat[image].min(), heat[image].max()
        np.testing.assert_allclose(over, (heat[image] - low) / (high - low), rtol=1e-6)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    told = ["relevance for cat", "relevance for dog"] if options else ["attention rollout", ""]
    assert titles == ["", "", *told]


def test_class_attention_has_a_row_for_each_head():
    maps, pictures = draw(2, 3, 8, 6), draw(2, 1, 8, 6)
    figure = rendered(analysis.plot_class_attention(maps, pictures))
    assert len(figure.axes) == 2 * (1 + 3)
    np.testing.assert_allclose(shown(figure, 1)[0], pictures[1, 0])
    one = maps[1, 2]
    np.testing.assert_allclose(shown(figure, 7)[1], (one - one.min()) / (one.max() - one.min()), rtol=1e-6)
    assert [axes.get_title(loc="left") for axes in figure.axes[2::2]] == ["head 0", "head 1", "head 2"]


def test_videos_are_drawn_by_frames():
    figure = rendered(analysis.plot_rollout(draw(2, 15, 8, 6), draw(2, 3, 15, 8, 6)))
    assert len(figure.axes) == 2 * 16
    np.testing.assert_allclose(shown(figure, 15)[0], draw(2, 3, 15, 8, 6)[1, :, -1].movedim(0, -1))
    figure = rendered(analysis.plot_token_colours(draw(1, 4, 2, 3, 3), draw(1, 3, 4, 8, 12)))
    assert len(figure.axes) == 8


def test_token_colours_stand_below_the_pictures():
    colours, pictures = draw(2, 4, 3, 3), draw(2, 3, 8, 6)
    figure = rendered(analysis.plot_token_colours(colours, pictures))
    np.testing.assert_allclose(shown(figure, 1)[0], pictures[1].movedim(0, -1))
    np.testing.assert_allclose(shown(figure, 3)[0], colours[1])


def test_position_similarity_is_a_map_of_maps():
    similarity = 2 * draw(3, 4, 3, 4) - 1
    (tiles,) = shown(rendered(analysis.plot_position_similarity(similarity)), 0)
    assert tiles.shape == (3 * 4 - 1, 4 * 5 - 1)
    np.testing.assert_allclose(tiles[8:11, 5:9], similarity[2, 1])
    video = draw(2, 3, 4, 2, 3, 4)
    (tiles,) = shown(rendered(analysis.plot_position_similarity(video, frame=1)), 0)
    np.testing.assert_allclose(tiles[8:11, 5:9], video[1, 2, 1, 1])
    (line,) = shown(rendered(analysis.plot_position_similarity(draw(6, 6))), 0)
    np.testing.assert_allclose(line, draw(6, 6))
    with pytest.raises(ValueError, match=r"rank 1 to 3 twice, got shape \(3, 4, 4, 3\)"):
        analysis.plot_position_similarity(draw(3, 4, 4, 3))


@pytest.mark.parametrize("shape", [(9, 3, 4, 5), (9, 3, 2, 4, 5)], ids=["images", "videos"])
def test_filters_are_stretched_one_by_one(shape):
    filters = draw(*shape) - 0.5
    figure = rendered(analysis.plot_embedding_filters(filters, columns=5))
    assert len(figure.axes) == 10
    last = filters[8] if filters.ndim == 4 else filters[8, :, 0]
    expected = (last - last.min()) / (last.max() - last.min())
    np.testing.assert_allclose(shown(figure, 8)[0], expected.movedim(0, -1), rtol=1e-6)
    assert shown(figure, 9) == []
    with pytest.raises(ValueError, match=r"2-D or 3-D patches, got shape \(9, 3, 4\)"):
        analysis.plot_embedding_filters(draw(9, 3, 4))


def test_layer_similarity_starts_at_the_bottom():
    similarity = draw(3, 4)
    figure = rendered(analysis.plot_layer_similarity(similarity, labels=("ViT", "PiT")))
    np.testing.assert_allclose(shown(figure, 0)[0], similarity)
    assert figure.axes[0].get_ylabel() == "ViT"
    assert not figure.axes[0].yaxis.get_inverted()


def test_pictures_undo_the_normalisation(build):
    model = build()
    model.default_cfg.update(mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.1))
    pictures = draw(2, 3, 8, 8)
    mean, std = (torch.tensor(model.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(to_pictures(model, (pictures - mean) / std), pictures)
    assert to_pictures(model, torch.full((1, 3, 2, 2), 9.0)).eq(1).all()


def test_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match=r"images .* or videos .*, got shape \(2, 3, 8\)"):
        analysis.plot_rollout(draw(2, 8), draw(2, 3, 8))
    with pytest.raises(ValueError, match=r"\(2, 8, 6\), got \(2, 4, 3\)"):
        analysis.plot_rollout(draw(2, 4, 3), draw(2, 3, 8, 6))
    with pytest.raises(ValueError, match="a class for each of 2 images, got 1"):
        analysis.plot_class_relevance(draw(2, 8, 6), draw(2, 3, 8, 6), ["cat"])


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = "import sys, vit_pytorch.analysis; print('matplotlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_reconstructions_have_a_row_each():
    parts = [draw(2, 3, 8, 6), 3 * draw(2, 3, 8, 6) - 1]
    figure = rendered(analysis.plot_reconstruction(parts, ["images", "predicted"]))
    assert len(figure.axes) == 4
    np.testing.assert_allclose(shown(figure, 1)[0], parts[0][1].movedim(0, -1))
    np.testing.assert_allclose(shown(figure, 3)[0], parts[1][1].clamp(0, 1).movedim(0, -1))
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["images", "predicted"]
    for wrong, titles in (([parts[0], parts[1][:1]], []), (parts, ["images"])):
        with pytest.raises(ValueError, match="pictures of one shape and a title each"):
            analysis.plot_reconstruction(wrong, titles)
