import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from made_pictures import png

from vit_pytorch.data import BadImageError, decode_image, open_data
from vit_pytorch.data.shards import ShardImages, expand_shards
from vit_pytorch.data.sizes import holds_photographs
from vit_pytorch.data.sources import absolute_source


def write_shards(folder: Path, stem: str, *counts: int) -> None:
    """Sample i over all shards has picture i and class i modulo 3."""
    folder.mkdir(exist_ok=True)
    start = 0
    for number, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"{stem}-{number:03}.tar")) as writer:
            for i in range(start, start + count):
                writer.write({"__key__": f"a/s{i:04}", "png": png(i), "cls": i % 3, "json": {"i": i}})
        start += count


def test_train_and_validation_patterns(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 4, 6, 2)
    write_shards(tmp_path, "val", 3, 2)
    splits = open_data(f"wds:{tmp_path}/train-{{000..002}}.tar,{tmp_path}/val-*.tar")
    assert splits.test is None
    assert splits.classes == ("0", "1", "2")
    assert (len(splits.train), len(splits.val)) == (12, 5)
    for i in (0, 5, 11):
        image, label = splits.train[i]
        assert torch.equal(image, decode_image(png(i)))
        assert label == i % 3
    assert splits.train.name(5) == f"{tmp_path}/train-001.tar:a/s0005"


def test_one_pattern_is_split_by_class(tmp_path: Path) -> None:
    write_shards(tmp_path, "all", 30, 30)
    splits = open_data(f"wds:{tmp_path}/all-{{000,001}}.tar")
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [42, 6, 12]
    names = {part.name(i) for part in (splits.train, splits.val, splits.test) for i in range(len(part))}
    assert len(names) == 60
    index = int(splits.test.name(7)[-4:])
    assert torch.equal(splits.test[7][0], decode_image(png(index)))


def test_no_pattern_for_validation_has_it_split_off_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, "train", 30, 30)
    write_shards(tmp_path, "test", 3)
    monkeypatch.chdir(tmp_path)
    spec = absolute_source("wds:train-{000,001}.tar,,test-000.tar")
    assert spec == f"wds:{tmp_path}/train-{{000,001}}.tar,,{tmp_path}/test-000.tar"
    splits = open_data(spec)
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [54, 6, 3]
    assert splits.val.labels.bincount().tolist() == [2, 2, 2]
    for spec in ("wds:,a.tar", "wds:a.tar,"):
        with pytest.raises(ValueError, match="got 2, of which one is empty"):
            open_data(spec)


def test_class_names_beside_the_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 6)
    write_shards(tmp_path, "val", 3)
    spec = f"wds:{tmp_path}/train-000.tar,{tmp_path}/val-000.tar"
    (tmp_path / "classes.json").write_text(json.dumps(["ant", "bee", "cat", "dog"]))
    assert open_data(spec).classes == ("ant", "bee", "cat", "dog")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(
        ValueError, match=r"labels must be 0 to 1 for 2 classes; .*s0002 in train has label 2"
    ):
        open_data(spec)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text(json.dumps({"ant": 0}))
    with pytest.raises(ValueError, match=r"classes\.json must be a list of names, got dict"):
        open_data(spec)
    (tmp_path / "classes.json").write_text("[")
    with pytest.raises(ValueError, match=r"classes\.json cannot be read: Expecting value"):
        open_data(spec)
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\nbee\n")
    with pytest.raises(ValueError, match=r"classes\.txt cannot be read: 'utf-8' codec"):
        open_data(spec)


def test_classes_by_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with webdataset.TarWriter(str(tmp_path / "t.tar")) as writer:
        for i in range(12):
            writer.write({"__key__": f"{i}", "jpg": png(i), "cls": ["dog", "cat"][i % 2].encode()})
    splits = open_data(f"wds:{tmp_path}/t.tar")
    assert all(int(splits.train.name(i).rsplit(":")[-1]) % 2 == 1 - splits.train[i][1] for i in range(8))
    with webdataset.TarWriter(str(tmp_path / "t.tar")) as writer:
        writer.write({"__key__": "x", "jpg": png(0), "cls": b"eel"})
    with pytest.raises(
        ValueError, match=r"t\.tar:x must be the index or name of one of 2 classes, got 'eel'"
    ):
        open_data(f"wds:{tmp_path}/t.tar")


def test_shuffling_keeps_to_a_window_of_shuffled_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_pytorch.data.shards.WINDOW", 8)
    shards = [tmp_path / f"{i}.tar" for i in range(10)]
    table = torch.tensor([(shard, 0, 0) for shard in range(10) for _ in range(50)])
    images = ShardImages(shards, table, ["k"] * 500, torch.zeros(500, dtype=torch.long))
    first, again, other = (images.shuffled(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.sort().values, torch.arange(500))
    for order in (first, other):
        shard_order = order.div(50, rounding_mode="floor")
        open_at_once = max(len(set(shard_order[i : i + 16].tolist())) for i in range(484))
        assert open_at_once <= 2
        assert shard_order.unique_consecutive().tolist() != sorted(shard_order.tolist())
        assert not torch.equal(order[shard_order == 3], torch.arange(150, 200))


def raw_tar(path: Path, *members: tuple[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], r"t\.tar:a has no \.cls member"),
        ([("a.png", b"x"), ("a.cls", b"0"), ("a.cls", b"1")], r"t\.tar:a has two labels"),
        (
            [("a.png", b"x"), ("a.cls", b"99999999999")],
            r"t\.tar:a has label 99999999999, in shards of 1 sample",
        ),
        (
            [("a.png", b"x"), ("a.cls", b"9" * 70000)],
            r"label of .*t\.tar:a must be the index of a class, got '9",
        ),
        ([("a.png", b"x"), ("a.cls", b"-1")], r"label of .*t\.tar:a must be .*, from 0 on, got -1"),
        ([("a.png", b"x"), ("a.cls", b"1_0")], r"t\.tar:a must be the index of a class, got '1_0'"),
        ([("../a.png", b"x"), ("../a.cls", b"0")], r"t\.tar:\.\./a\.png leads out of the archive"),
        ([("b/../../a.png", b"x")], r"leads out of the archive: names of members must be relative"),
        ([("/etc/a.png", b"x"), ("/etc/a.cls", b"0")], r"t\.tar:/etc/a\.png leads out of the archive"),
        ([("a.png", b"x"), ("a.json", b"{")], r"the \.json member of .*t\.tar:a is not JSON"),
        ([("a.png", b"x"), ("a.json", b'{"label": 1.5}')], r"must be an index or a name, got 1\.5"),
        ([("a.png", b"x"), ("a.json", b'{"label": 1, "cls": 2}')], r"t\.tar:a has the labels 2 and 1"),
        (
            [("a.png", b"x"), ("a.json", b'{"width": 1}')],
            r"has no \.cls member, nor a \.json member with a label",
        ),
        (
            [("a.png", b"x"), ("a.cls", b"0"), ("a.json", b'{"label": "1"}')],
            r"t\.tar:a is of class 0 by its \.cls member, and of class 1 by its \.json member",
        ),
        ([("a.cls", b"0")], r"t\.tar:a has no image member"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"0")], r"t\.tar:a has two images"),
        ([("a.png", b"x"), ("a.cls", b"cat")], r"t\.tar:a must be the index of a class, got 'cat'"),
        ([], "hold no images"),
    ],
)
def test_malformed_samples_are_named(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    raw_tar(tmp_path / "t.tar", *members)
    with pytest.raises(ValueError, match=message):
        open_data(f"wds:{tmp_path}/t.tar")


def members_of(count: int, **kinds: list[bytes | None]) -> list[tuple[str, bytes]]:
    """Images, and members of other kinds for those of them that have one."""
    members = []
    for i in range(count):
        members.append((f"{i:02}.png", png(i)))
        members += [
            (f"{i:02}.{kind}", text) for kind, texts in kinds.items() if (text := texts[i]) is not None
        ]
    return members


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ({}, r"t.tar:00 has no .cls member, nor a .json member with a label"),
        ({"json": [b'{"label": [3, 4]}'] * 20}, "must be an index or a name, got [3, 4]"),
        ({"cls": [*[b"0", b"1"] * 9, None, None]}, "t.tar:18 has no .cls member"),
        ({"cls": [b"0", b"cat"] * 10}, "t.tar:01 must be the index of a class, got 'cat'"),
        ({"cls": [b"1"] * 20}, "there is one class, '1'"),
        ({"cls": [*[b"0"] * 18, b"1", b"1"]}, "class '1' has 2 images, and 3 are needed"),
        ({"cls": [b"0", b"1"] * 10}, ""),
        # classes of which there are no images
        ({"cls": [b"0", b"4"] * 10}, ""),
    ],
)
def test_learning_without_labels_takes_any_images(
    tmp_path: Path, kinds: dict[str, list[bytes | None]], reason: str
) -> None:
    raw_tar(tmp_path / "t.tar", *members_of(20, **kinds))
    splits = open_data(f"wds:{tmp_path}/t.tar", unlabelled=True)
    assert reason in splits.unlabelled
    assert bool(reason) == bool(splits.unlabelled) == (splits.classes == ()) == (splits.test is None)
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    names = {part.name(i): part[i][0] for part in parts for i in range(len(part))}
    assert len(names) == 20
    assert torch.equal(names[f"{tmp_path}/t.tar:07"], decode_image(png(7)))
    assert (-1 in splits.train.labels.tolist()) == bool(reason)


def test_shards_without_labels_beside_labelled_ones(tmp_path: Path) -> None:
    raw_tar(tmp_path / "t.tar", *members_of(20, cls=[b"0", b"1"] * 10))
    raw_tar(tmp_path / "v.tar", *members_of(4))
    raw_tar(tmp_path / "w.tar", *members_of(4, cls=[b"2", b"1"] * 2))
    splits = open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/v.tar", unlabelled=True)
    assert [len(splits.train), len(splits.val)] == [20, 4]
    assert "v.tar:00 has no .cls member" in splits.unlabelled
    splits = open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/w.tar", unlabelled=True)
    assert splits.unlabelled == "labels must be 0 to 1 for 2 classes, got 2"
    # what is no image is refused as ever
    raw_tar(tmp_path / "x.tar", *members_of(4), ("z.cls", b"0"))
    with pytest.raises(ValueError, match=r"x\.tar:z has no image member"):
        open_data(f"wds:{tmp_path}/x.tar", unlabelled=True)


def test_sizes_are_looked_at_in_the_first_of_several_patterns(tmp_path: Path) -> None:
    raw_tar(tmp_path / "t.tar", *members_of(4))
    write_shards(tmp_path, "val", 2)
    assert not holds_photographs(f"wds:{tmp_path}/t.tar,{tmp_path}/val-000.tar")
    raw_tar(tmp_path / "t.tar", ("a.png", png(0, size=(80, 80))))
    assert holds_photographs(f"wds:{tmp_path}/t.tar,{tmp_path}/val-000.tar")


def test_members_that_are_no_plain_files_are_left_out(tmp_path: Path) -> None:
    raw_tar(
        tmp_path / "t.tar",
        *((f"{i}.{k}", d) for i in range(8) for k, d in (("png", png(i)), ("cls", b"%d" % (i % 2)))),
    )
    with tarfile.open(tmp_path / "t.tar", "a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "8.png"),
            (tarfile.LNKTYPE, "9.png"),
            (tarfile.CHRTYPE, "10.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with pytest.warns(
        UserWarning, match=r"t\.tar: left out members that are no plain files: 8\.png, 9\.png, 10\.png"
    ):
        splits = open_data(f"wds:{tmp_path}/t.tar", test_fraction=0)
    assert len(splits.train) + len(splits.val) == 8


def test_labels_in_json(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    labels = [{"label": 0}, {"cls": "dog"}, {"label": "cat", "cls": "cat", "width": 9}, {"label": 1}] * 3
    members = [
        (f"{i}.{kind}", data)
        for i, label in enumerate(labels)
        for kind, data in (("png", png(i)), ("json", json.dumps(label).encode()))
    ]
    raw_tar(tmp_path / "t.tar", *members)
    raw_tar(tmp_path / "v.tar", *members)
    assert open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/v.tar").train.labels.tolist() == [0, 1, 0, 1] * 3


def test_labels_in_json_beside_cls(tmp_path: Path) -> None:
    """They may say the same in other words, or something else than a class."""
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    beside: list[bytes | None] = [
        *(
            b'{"label": "cat"}',
            b'{"cls": "1"}',
            b'{"label": "tabby"}',
            b"{",
            b'{"label": [1]}',
            b'{"label": 999}',
        ),
        *(b"[0]", b"{}", None, b'{"label": 1}'),
    ]
    raw_tar(tmp_path / "t.tar", *members_of(10, cls=[b"0", b"1"] * 5, json=beside))
    splits = open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/t.tar")
    assert splits.train.labels.tolist() == [0, 1] * 5
    beside[4] = b'{"label": "dog"}'
    raw_tar(tmp_path / "t.tar", *members_of(10, cls=[b"0", b"1"] * 5, json=beside))
    with pytest.raises(ValueError, match=r"t\.tar:04 is of class 0 by its \.cls member, and of class 1 by"):
        open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/t.tar")
    splits = open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/t.tar", unlabelled=True)
    assert "t.tar:04 is of class 0" in splits.unlabelled


def test_dots_in_base_names(tmp_path: Path) -> None:
    """Up to the first dot, all of these have one base name."""
    members = [
        (f"d/photo.{i}.{kind}", data)
        for i in range(6)
        for kind, data in (("jpg", png(i)), ("cls", b"%d" % (i % 2)))
    ]
    raw_tar(tmp_path / "t.tar", *members)
    raw_tar(tmp_path / "v.tar", *members)
    splits = open_data(f"wds:{tmp_path}/t.tar,{tmp_path}/v.tar")
    assert splits.train.labels.tolist() == [0, 1] * 3
    assert splits.train.name(4).endswith("t.tar:d/photo.4")
    assert torch.equal(splits.train[4][0], decode_image(png(4)))


def test_broken_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 6)
    whole = (tmp_path / "train-000.tar").read_bytes()
    with tarfile.open(tmp_path / "train-000.tar") as archive:
        second_sample = next(member.offset for member in archive if member.name.startswith("a/s0001"))
    for length in (700, second_sample, second_sample + 512, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar is not a whole, uncompressed tar file"):
            open_data(f"wds:{tmp_path}/cut.tar")
    (tmp_path / "odd.tar").write_bytes(b"no header".ljust(2048, b"\0"))
    with pytest.raises(ValueError, match=r"odd\.tar is not a whole, uncompressed tar file"):
        open_data(f"wds:{tmp_path}/odd.tar")
    raw_tar(tmp_path / "zipped.tar", ("a.png", png(0)), ("a.cls", b"0"), mode="w:gz")
    with pytest.raises(ValueError, match=r"zipped\.tar is not a whole, uncompressed tar file"):
        open_data(f"wds:{tmp_path}/zipped.tar")


def test_bad_image_names_shard_and_sample(tmp_path: Path) -> None:
    raw_tar(
        tmp_path / "t.tar", *[(f"{i}.{kind}", b"%d" % (i % 2)) for i in range(6) for kind in ("png", "cls")]
    )
    splits = open_data(f"wds:{tmp_path}/t.tar")
    with pytest.raises(BadImageError, match=r"t\.tar:\d: not an image"):
        splits.train[0]


def test_shards_that_do_not_exist_or_are_remote(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 1)
    with pytest.raises(ValueError, match=r"no such shard: .*train-001\.tar"):
        expand_shards(f"{tmp_path}/train-{{000..002}}.tar")
    with pytest.raises(ValueError, match=r"no such shard: .*none-\*\.tar"):
        expand_shards(f"{tmp_path}/none-*.tar")
    for remote in ("https://example.org/a.tar", "pipe:cat a.tar"):
        with pytest.raises(ValueError, match=f"must be local files.*{remote}"):
            expand_shards(remote)


def test_too_many_patterns() -> None:
    with pytest.raises(ValueError, match="patterns for train, val and test, got 4"):
        open_data("wds:a.tar,b.tar,c.tar,d.tar")
