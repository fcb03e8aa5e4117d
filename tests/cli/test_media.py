"""Training on videos and volumes by the real command, and using what was trained."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import train
from tests.cli.test_use import answer
from tests.training.films import drifting, shorten, write_film
from vit_pytorch import create_model
from vit_pytorch.cli import main
from vit_pytorch.data import VideoConfig, VolumeConfig, eval_transform, read_parts
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.saved import load_classifier

nibabel = pytest.importorskip("nibabel", reason="volumes need nibabel: pip install nibabel")

TINY = [
    "--model=simple_vit_3d_tiny_16x2",
    "--model.image-size=16",
    "--model.frames=8",
    "--model.image-patch-size=4",
    "--model.frame-patch-size=2",
    "--model.dim=48",
    "--model.depth=2",
    "--model.heads=2",
    "--model.mlp-dim=96",
    "--batch-size=8",
    "--workers=0",
    "--ema=null",
    "--schedule.warmup-epochs=0",
]
PLAIN = [
    "--augmentation.crop-scale=null",
    "--augmentation.random-erasing=0",
    "--label-smoothing=0",
    "--optimizer.lr=0.003",
]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares that drift to the left or to the right: no frame tells which."""
    folder = tmp_path_factory.mktemp("films")
    for label, name in enumerate(("left", "right")):
        for i in range(40):
            write_film(folder / name / f"{i:02}.mp4", drifting(label, 16, seed=100 * label + i))
    return folder


@pytest.fixture(scope="module")
def films_run(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "films"
    options = ["--epochs=11", "--data.video.stride=2"]
    assert train(f"--data=video:{films}", "--output", folder, *TINY, *PLAIN, *options) == 0
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes that are brighter in their upper or in their lower half."""
    folder = tmp_path_factory.mktemp("scans")
    for label, name in enumerate(("above", "below")):
        for i in range(8):
            generator = np.random.default_rng(10 * label + i)
            values = generator.normal(size=(16, 16, 12)) * 50 + 1000
            values[:, :, slice(6) if label else slice(6, None)] += 300
            (folder / name).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([2, 2, 3, 1]))
            nibabel.save(image, folder / name / f"{i}.nii.gz")
    return folder


def test_learns_what_only_movement_tells(films_run: Path) -> None:
    summary = json.loads((films_run / "summary.json").read_text())
    assert summary["test"]["accuracy"] >= 0.9
    assert summary["images"] == {"train": 58, "val": 6, "test": 16}
    assert "of 16 videos" in (films_run / "summary.md").read_text()
    for name in ("curves.png", "confusion.png", "wrong.png"):
        assert (films_run / name).read_bytes().startswith(b"\x89PNG")


def test_the_model_folder_knows_how_clips_are_made(films_run: Path) -> None:
    saved = load_classifier(films_run)
    assert (saved.preprocessing.frames, saved.preprocessing.image_size) == (8, (16, 16))
    assert saved.preprocessing.video == VideoConfig(stride=2)
    assert saved.classes == ("left", "right")
    assert create_model(str(films_run))(torch.randn(1, 3, 8, 16, 16)).shape == (1, 2)


def test_evaluate_gives_the_summarys_figures(films_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((films_run / "summary.json").read_text())
    found = answer(capsys, "evaluate", films_run, "--batch-size=3", "--workers=1")
    assert found["confusion"] == summary["test"]["confusion"]
    assert found["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-4)
    assert main(["evaluate", str(films_run)]) == 0
    assert "of 16 videos" in capsys.readouterr().out


def test_predict_tells_the_classes_over_time(
    films_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = write_film(tmp_path / "turn.mp4", [*drifting(1, 16, seed=50), *drifting(0, 16, seed=51)])
    (found,) = answer(capsys, "predict", films_run, tmp_path, "--top=2")
    assert found["video"] == str(there)
    times = [time for clip in found["clips"] for time in (clip["start"], clip["end"])]
    assert times == pytest.approx([0, 1.5, 1.5, 3, 1.7, 3.2])
    assert [clip["top"][0]["class"] for clip in (found["clips"][0], found["clips"][2])] == ["right", "left"]
    likely = [{entry["class"]: entry["probability"] for entry in clip["top"]} for clip in found["clips"]]
    for entry in found["top"]:
        assert entry["probability"] == pytest.approx(sum(p[entry["class"]] for p in likely) / 3)

    saved = load_classifier(films_run)
    part = next(read_parts(there, saved.preprocessing))
    with torch.no_grad():
        clip = eval_transform(saved.preprocessing)(part.clip)
        (probabilities,) = saved.model(clip[None]).softmax(1)
    assert likely[0]["left"] == pytest.approx(probabilities[0].item(), abs=1e-5)

    (closer,) = answer(capsys, "predict", films_run, there, "--step=1", "--batch-size=5")
    assert [clip["start"] for clip in closer["clips"]] == pytest.approx([i / 10 for i in range(18)])
    assert main(["predict", str(films_run), str(there), "--top=1"]) == 0
    header, first, *_, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["video", "seconds", "1."]
    assert first.split()[1:5] == ["0.00", "-", "1.50", "right"]
    assert last.split()[1] == "all"


def test_a_model_of_videos_takes_no_volumes(
    films_run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looked at slices as if they were frames, and answered."""
    values = np.random.default_rng(0).normal(size=(16, 16, 8))
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for i in range(4):
            nibabel.Nifti1Image(values + i, np.eye(4)).to_filename(tmp_path / name / f"{i}.nii.gz")
    scan = tmp_path / "left" / "0.nii.gz"
    film = films / "left" / "00.mp4"
    with pytest.raises(SystemExit) as leave:
        main(["predict", str(films_run), str(scan), str(film), "--json"])
    assert leave.value.code == 3
    printed = capsys.readouterr()
    assert [row["video"] for row in json.loads(printed.out)] == [str(film)]
    assert f"bad volume {scan}: the model was trained on videos" in printed.err
    assert main(["evaluate", str(films_run), "--data", f"nifti:{tmp_path}"]) != 0
    assert "the model was trained on videos, and the data are volumes" in capsys.readouterr().err
    config = load_classifier(films_run).model.default_cfg
    assert "video" in config
    assert "volume" not in config


def test_workers_read_no_videos(films: Path, films_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(films_run), str(films), "--workers=2"]) == 2
    assert "workers read images; videos and volumes are read one after the other" in capsys.readouterr().err


def test_a_bad_video_stops_the_prediction_or_is_skipped(
    films_run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (films / "left" / "00.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole)
    (tmp_path / "b.mp4").write_bytes(whole)
    shorten(tmp_path / "a.mp4")
    assert main(["predict", str(films_run), str(tmp_path), "--on-bad=stop"]) == 3
    assert "bad video" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leave:
        main(["predict", str(films_run), str(tmp_path), "--csv=-", "--top=1"])
    assert leave.value.code == 3
    said = capsys.readouterr()
    assert "a.mp4" in said.err
    header, *clips, whole = (line.split(",") for line in said.out.splitlines())
    assert header == ["path", "start", "end", "class", "probability"]
    assert {row[0] for row in (*clips, whole)} == {str(tmp_path / "b.mp4")}
    assert [float(value) for value in clips[0][1:3]] == [0, 1.5]
    assert whole[1:3] == ["", ""]
    with pytest.warns(UserWarning, match=r"skipped bad video .*a\.mp4"):
        (found,) = answer(capsys, "predict", films_run, tmp_path, "--on-bad=skip")
    assert found["video"] == str(tmp_path / "b.mp4")


def test_bad_videos_stop_the_training_or_are_skipped_and_listed(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("left", "right"):
        (tmp_path / "films" / name).mkdir(parents=True)
        for i in range(8):
            path = tmp_path / "films" / name / f"{i}.mp4"
            path.write_bytes((films / name / f"{i:02}.mp4").read_bytes())
            if i == 3:
                shorten(path)
    options = [f"--data=video:{tmp_path / 'films'}", *TINY, "--epochs=1", "--batch-size=4"]
    assert train(*options, "--output", tmp_path / "stopped") == 3
    assert "bad video" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="skipped bad video"):
        assert train(*options, "--output", tmp_path / "run", "--data.on-bad=skip") == 0
    skipped = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_images"]
    assert skipped
    assert all(name.endswith("3.mp4") for name in skipped)
    page = (tmp_path / "run" / "summary.md").read_text()
    assert f"- left out, since they could not be decoded: {len(skipped)}: {next(iter(skipped))} (" in page


def test_another_run_goes_on_from_a_run_on_videos(films: Path, films_run: Path, tmp_path: Path) -> None:
    options = [f"--data=video:{films}", "--epochs=1", "--batch-size=8", "--workers=0", "--accelerator=cpu"]
    tuned = tmp_path / "tuned"
    arguments = ["finetune", f"--from={films_run}", *options, f"--output={tuned}", "--method=head"]
    assert main([*arguments, "--schedule.warmup-epochs=0"]) == 0
    (row,) = read_rows(tuned / "metrics.csv")
    assert row["val/accuracy"] > 0.5
    assert load_classifier(tuned).preprocessing.frames == 8


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (["--model=vit_tiny_patch16_224"], "input of 224 x 224, but video:.* holds videos"),
        ([*TINY, "--data=digits"], "input of 8 x 16 x 16, but digits holds images"),
    ],
)
def test_model_and_data_of_different_axes(
    model: list[str], message: str, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--data=digits" in model else [f"--data=video:{films}"]
    assert train(*data, *model, "--output", tmp_path / "run") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run" / ".run").exists()


def test_explaining_takes_models_of_images(
    films_run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", films_run, films / "left" / "00.mp4", "--output", tmp_path / "page"]
    assert main([*map(str, arguments)]) == 2
    assert "takes an input of 8 x 16 x 16" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_teacher_takes_images(
    films_run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--teacher={films_run}", f"--data=video:{films}", "--accelerator=cpu", *TINY]
    assert main(["distill", *arguments, f"--output={tmp_path / 'run'}"]) == 4
    assert "a teacher takes images" in capsys.readouterr().err


def test_trains_on_volumes(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    window = ["--data.volume.window=[900,1500]", "--data.test-fraction=0.25", "--data.val-fraction=0.25"]
    run = tmp_path / "run"
    options = [
        "--epochs=10",
        "--batch-size=4",
        "--augmentation.crop-scale=null",
        "--optimizer.lr=0.003",
        *window,
    ]
    assert train(f"--data=nifti:{scans}", "--output", run, *TINY, *options) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images"] == {"train": 8, "val": 4, "test": 4}
    saved = load_classifier(run)
    assert saved.model.channels == 1
    assert saved.preprocessing.volume == VolumeConfig(window=(900, 1500))
    assert answer(capsys, "evaluate", run)["confusion"] == summary["test"]["confusion"]
    assert train("--resume", run, "--epochs=11") == 0
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == list(range(1, 12))

    found = answer(capsys, "predict", run, scans, "--batch-size=4")
    assert [Path(volume["volume"]).name for volume in found] == [f"{i}.nii.gz" for i in range(8)] * 2
    named = [Path(volume["volume"]).parent.name == volume["top"][0]["class"] for volume in found]
    assert sum(named) >= 12
    assert main(["predict", str(run), str(scans / "above" / "0.nii.gz")]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["volume", "1.", "2."]
    assert row.startswith(str(scans / "above" / "0.nii.gz"))
