"""Shards as a stream: from files, a server and commands; what is broken; where a training goes on."""

import http.server
import io
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from made_pictures import png
from PIL import Image

from vit_pytorch.data import (
    BadImageError,
    ImageData,
    LoadingError,
    StreamConfig,
    open_data,
    remote,
    stream_loader,
)
from vit_pytorch.data.remote import ShardNames
from vit_pytorch.data.stream_loader import StreamLoader

COUNT, SHARDS = 12, 4
CONFIG: dict[str, Any] = {"epoch_samples": 24, "classes": 3}


def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of twelve images, and one for validation; image i has class i modulo 3."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS + 1):
        name = f"train-{number:02}.tar" if number < SHARDS else "val.tar"
        with webdataset.TarWriter(str(folder / name)) as writer:
            for i in range(number * COUNT, (number + 1) * COUNT):
                writer.write({"__key__": f"{i:04}", "png": png(i), "json": {"label": i % 3}})
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(shards: Path) -> Iterator[str]:
    """A server of the shards."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, quick_shutdown: None) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT", 1.0)


def data(pattern: str, shards: Path, **options: Any) -> ImageData:
    config = StreamConfig(**{**CONFIG, "val": f"{shards}/val.tar"})
    splits = open_data(f"stream:{pattern}", stream=config)
    return ImageData(splits, image_size=8, **{"batch_size": 4, **options})


def epochs(module: ImageData, count: int = 1, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = module.train_dataloader()
    batches = []
    for epoch in range(first, first + count):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def labels(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
    return torch.cat([targets for _, targets in batches]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", ["{shards}/{names}", "{address}/{names}", "pipe:gzip -c {shards}/{names}"])
def test_an_epoch_is_a_number_of_samples(shards: Path, address: str, form: str, workers: int) -> None:
    pattern = form.format(shards=shards, address=address, names="train-{00..03}.tar")
    module = data(pattern, shards, workers=workers)
    batches = epochs(module, 2)
    assert [images.shape for images, _ in batches] == [(4, 3, 8, 8)] * 12
    counts = Counter(labels(batches))
    assert counts.keys() == {0, 1, 2}
    assert module.sizes == {"train": 24, "val": 12}
    seen = {image.numpy().tobytes() for images, _ in batches for image in images}
    assert len(seen) > 12


def test_images_keep_their_labels(shards: Path) -> None:
    known = open_data(f"wds:{shards}/train-*.tar", val_fraction=0.1, test_fraction=0)
    wanted = {}
    for part in (known.train, known.val):
        wanted |= {image.numpy().tobytes(): label for image, label in (part[i] for i in range(len(part)))}
    size = known.train[0][0].shape[-1]
    config = StreamConfig(**CONFIG, val=f"{shards}/val.tar")
    splits = open_data(f"stream:{shards}/train-*.tar", stream=config)
    module = ImageData(splits, image_size=size, batch_size=8, mean=(0.0,), std=(1.0,))
    for images, targets in epochs(module, 2):
        for image, label in zip((images * 255).round().to(torch.uint8), targets.tolist(), strict=True):
            assert wanted[image.contiguous().numpy().tobytes()] == label


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_start_gives_the_same_samples_and_another_start_others(shards: Path, workers: int) -> None:
    pattern = f"{shards}/train-{{00..03}}.tar"
    first, again = (epochs(data(pattern, shards, workers=workers), 2) for _ in range(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    ranks = []
    for rank in range(2):
        module = data(pattern, shards, workers=workers, batch_size=2)
        module.rank, module.world_size = rank, 2
        ranks.append(epochs(module))
    assert [len(batches) for batches in ranks] == [6, 6]
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(*ranks, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_at_the_number_of_samples(shards: Path, workers: int) -> None:
    pattern = f"{shards}/train-{{00..03}}.tar"
    whole = epochs(data(pattern, shards, workers=workers), 2)
    module = data(pattern, shards, workers=workers)
    loader = module.train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = module.state_dict()
    assert (state["train"]["epoch"], state["train"]["batch"]) == (1, 2)
    resumed = data(pattern, shards, workers=workers)
    resumed.load_state_dict(state)
    rest = epochs(resumed, 1, first=1)
    assert len(rest) == 4
    # from where it stands, not from the first samples again
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, whole, strict=False))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(rest, whole[8:], strict=True))


def test_the_loader_leaves_the_global_generator_alone(shards: Path) -> None:
    module = data(f"{shards}/train-00.tar", shards)
    before = torch.random.get_rng_state()
    for _ in module.train_dataloader():
        assert torch.equal(torch.random.get_rng_state(), before)


def test_validation_images_are_seen_once_each(shards: Path) -> None:
    module = data(f"{shards}/train-{{00..03}}.tar", shards, workers=0)
    assert sorted(labels(list(module.val_dataloader()))) == [0] * 4 + [1] * 4 + [2] * 4


def test_without_labels(shards: Path) -> None:
    config = StreamConfig(epoch_samples=8, val=f"{shards}/val.tar")
    splits = open_data(f"stream:{shards}/train-00.tar", stream=config, unlabelled=True)
    assert splits.classes == ()
    assert "stream" in splits.unlabelled
    assert set(labels(epochs(ImageData(splits, image_size=8, batch_size=4)))) == {-1}
    assert splits.val.labels.unique().tolist() == [-1]


def test_names_of_classes(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("ant\nbee\ncat\n")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(8):
            writer.write({"__key__": f"{i}", "png": png(i), "cls": ("ant", "bee", "cat")[i % 3].encode()})
    config = StreamConfig(epoch_samples=16, classes=str(file), val=f"{shards}/val.tar")
    splits = open_data(f"stream:{tmp_path}/a.tar", stream=config)
    assert splits.classes == ("ant", "bee", "cat")
    assert set(labels(epochs(ImageData(splits, image_size=8, batch_size=8)))) == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples(shards: Path, tmp_path: Path, workers: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(10):
            member(archive, f"{i}.png", b"no picture" if i == 3 else png(i))
            member(archive, f"{i}.cls", b"7" if i == 4 else b"1")
            member(archive, f"{i}.json", b'{"cls": 0}' if i == 5 else b'{"label": "no class"}')
        member(archive, "x.png", png(1))
    pattern = f"{tmp_path}/a.tar"
    with pytest.raises(
        BadImageError,
        match=r"bad image .*a\.tar:(3: not an image|4: its label|5: .* class 1 by its .cls|x: it has no)",
    ):
        epochs(data(pattern, shards, workers=workers))
    module = data(pattern, shards, workers=workers, on_bad="skip")
    with pytest.warns(UserWarning, match=r"skipped bad image .*a\.tar:") as caught:
        batches = epochs(module)
    assert len(caught) == 4
    assert [len(images) for images, _ in batches] == [4] * 6
    assert {name.rpartition(":")[2] for name in module.bad} == {"3", "4", "5", "x"}
    assert module.bad[f"{tmp_path}/a.tar:4"] == "its label must be 0 to 2, got 7"


def test_nothing_but_bad_samples(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_loader, "MOST_SAMPLES", 20)
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "png": png(0), "cls": b"one"})
    module = data(f"{tmp_path}/a.tar", shards, on_bad="skip")
    with pytest.raises(
        LoadingError, match=r"20 samples in a row cannot be used; the last: bad image .*'one'"
    ):
        epochs(module)


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (540, "empty header|unexpected end of data"),
        (None, "ends without the 1024 zero bytes"),
        (0, "empty file"),
    ],
)
def test_a_broken_shard(shards: Path, tmp_path: Path, cut: int | None, reason: str) -> None:
    """Cut within a member; between two, so that it only seems smaller; and empty."""
    whole = (shards / "train-00.tar").read_bytes()
    if cut is None:
        with tarfile.open(shards / "train-00.tar") as archive:
            cut = archive.getmembers()[4].offset
    (tmp_path / "a-0.tar").write_bytes(whole[:cut])
    (tmp_path / "a-1.tar").write_bytes(whole)
    pattern = f"{tmp_path}/a-{{0..1}}.tar"
    with pytest.raises(LoadingError, match=rf"reading the shard .*a-0\.tar failed: .*({reason})"):
        epochs(data(pattern, shards), 5)
    module = data(pattern, shards, on_bad="skip")
    with pytest.warns(
        UserWarning, match=r"skipped bad image .*a-0\.tar: the shard cannot be read to its end"
    ):
        batches = epochs(module, 5)
    assert len(batches) == 30
    assert module.bad.keys() == {f"{tmp_path}/a-0.tar"}


def test_what_a_broken_shard_began_is_not_completed_by_another(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have a sample `k`; the label of one must not meet the image of the other."""
    monkeypatch.setattr(stream_loader, "MOST_SAMPLES", 10)
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        member(archive, "k.png", png(0))
        member(archive, "k.cls", bytes(600))
        cut = archive.getmember("k.cls").offset_data + 512
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:cut])
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        member(archive, "k.cls", b"2")
    module = data(f"{tmp_path}/{{0..1}}.tar", shards, on_bad="skip")
    with pytest.raises(LoadingError, match=r"10 samples in a row .*1\.tar:k: .* this one has 0"):
        epochs(module)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreachable_server_ends_in_one_sentence(shards: Path, workers: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(LoadingError) as caught:
        epochs(data(f"http://127.0.0.1:{port}/a-{{0..9}}.tar", shards, workers=workers))
    assert time.monotonic() - start < 10
    said = str(caught.value)
    assert said.removeprefix("data-loader worker 0: ").startswith("reading the shard http://127.0.0.1")
    assert said.endswith("failed: Connection refused")


def test_a_server_that_does_not_answer(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(LoadingError, match="failed: no answer in time"):
            epochs(data(f"http://127.0.0.1:{port}/a.tar", shards))


def test_shards_that_are_not_there(shards: Path, address: str) -> None:
    with pytest.raises(LoadingError, match=r"none\.tar failed: the server answers 404"):
        epochs(data(f"{address}/none.tar", shards))
    module = data(f"{address}/none-{{0..99}}.tar", shards, on_bad="skip")
    with pytest.raises(LoadingError, match=r"10 shards in a row cannot be read; the last, .*answers 404"):
        epochs(module)
    with pytest.raises(LoadingError, match="failed: the command left with status 3"):
        epochs(data("pipe:exit 3", shards))
    with pytest.raises(LoadingError, match="failed: the command left with status 4"):
        epochs(data(f"pipe:cat {shards}/train-00.tar; exit 4", shards))
    with pytest.raises(ValueError, match=r"no such shard: .*none\.tar"):
        data(f"{shards}/none.tar", shards)


def test_what_a_stream_must_be_told(shards: Path) -> None:
    def refused(pattern: str = f"{shards}/train-00.tar", **settings: Any) -> str:
        with pytest.raises(ValueError, match="stream") as caught:
            open_data(f"stream:{pattern}", stream=StreamConfig(**settings))
        return str(caught.value)

    val = f"{shards}/val.tar"
    assert "how many images make an epoch" in refused(classes=3, val=val)
    assert "does not list its classes" in refused(epoch_samples=5, val=val)
    assert "needs validation images" in refused(epoch_samples=5, classes=3)
    assert "pipe:COMMAND" in refused("gs://bucket/a.tar", epoch_samples=5, classes=3, val=val)
    assert "at least 2" in refused(epoch_samples=5, classes=1, val=val)
    with pytest.raises(ValueError, match="epoch_samples must be at least 1, got 0"):
        StreamConfig(epoch_samples=0)
    with pytest.raises(ValueError, match="classes, val are for stream: data, got digits"):
        open_data("digits", stream=StreamConfig(classes=3, val=val))


def test_the_range_of_a_stream_is_that_of_its_validation_images(tmp_path: Path) -> None:
    for name in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as writer:
            for i in range(6):
                file = io.BytesIO()
                Image.fromarray(np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)).save(file, "png")
                writer.write({"__key__": str(i), "png": file.getvalue(), "cls": str(i % 3)})
    with pytest.warns(UserWarning, match=r"val\.tar:0 use 6\.2% of their range: values 0 to 4095 of 0"):
        data(f"{tmp_path}/train.tar", tmp_path, channels=1).train_dataloader()
    window = data(f"{tmp_path}/train.tar", tmp_path, channels=1, window="auto").preprocessing.window
    assert window == (0, 4095)


def test_single_images_are_refused(shards: Path) -> None:
    splits = open_data(
        f"stream:{shards}/train-00.tar", stream=StreamConfig(**CONFIG, val=f"{shards}/val.tar")
    )
    with pytest.raises(ValueError, match="come in the order of their shards"):
        splits.train[0]
    assert "an epoch is 24 samples drawn from 1 shards" in str(splits.train)


@pytest.mark.parametrize(
    "pattern",
    [
        "a.tar",
        "a-{000..011}.tar",
        "a-{8..12}.tar",
        "{3..1}-{a,b}.tar",
        "{0..10..5}/{00..01}{x,{y,z}}.tar",
        "pipe:awk '{print}' {0..2}.tar",
        r"pipe:echo \{0..2\}",
    ],
)
def test_names_are_those_of_a_shell(pattern: str) -> None:
    from braceexpand import braceexpand

    names = ShardNames(pattern)
    wanted = list(braceexpand(pattern))
    assert len(names) == len(wanted)
    assert list(names) == wanted
    assert names[-1] == wanted[-1]
    with pytest.raises(IndexError):
        names[len(wanted)]


def test_a_billion_names_take_no_time() -> None:
    names = ShardNames("http://host/{a,b}/{000000000..999999999}.tar")
    assert len(names) == 2 * 10**9
    assert names[10**9 + 7] == "http://host/b/000000007.tar"


def test_one_iterator_lives_through_the_epochs(shards: Path) -> None:
    loader = data(f"{shards}/train-{{00..03}}.tar", shards, workers=1).train_dataloader()
    assert isinstance(loader, StreamLoader)
    processes = set()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert len(list(loader)) == 6
        processes.add(int(loader._reading[0, 0]))
    assert len(processes) == 1
