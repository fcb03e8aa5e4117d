from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vit_pytorch.data import BadImageError, VolumeConfig, volumes
from vit_pytorch.data.volumes import decode_volume

nibabel = pytest.importorskip("nibabel", reason="volumes need nibabel: pip install nibabel")

REAL = Path(nibabel.__file__).parent / "tests" / "data"
# voxels from right to left, from front to back, from below to above, as slices are shown
SHOWN = np.diag([-1, -1, 1, 1]).astype(float)
WINDOW = VolumeConfig(window=(0, 100))


def write(path: Path, voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] = SHOWN) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def voxels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 101, shape).astype(np.int16)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_slices_are_axial(name: str, tmp_path: Path) -> None:
    scan = voxels(5, 4, 3)
    found = decode_volume(write(tmp_path / name, scan), WINDOW)
    assert found.shape == (3, 1, 4, 5)
    assert torch.equal(found[:, 0], torch.from_numpy(scan.T / np.float32(100)))


@pytest.mark.parametrize(
    ("axes", "codes"), [((0, 1, 2), "RAS"), ((1, 0, 2), "PLI"), ((2, 0, 1), "SRA"), ((1, 2, 0), "AIL")]
)
def test_the_order_of_axes_in_a_file_changes_nothing(
    axes: tuple[int, ...], codes: str, tmp_path: Path
) -> None:
    scan = nibabel.Nifti1Image(voxels(5, 4, 3), SHOWN)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(SHOWN), nibabel.orientations.axcodes2ornt(codes)
    )
    turned = scan.as_reoriented(turn)
    assert nibabel.aff2axcodes(turned.affine) == tuple(codes)
    assert turned.shape == tuple(scan.shape[i] for i in axes)
    nibabel.save(turned, tmp_path / "turned.nii")
    plain = decode_volume(write(tmp_path / "scan.nii", voxels(5, 4, 3)), WINDOW)
    assert torch.equal(decode_volume(tmp_path / "turned.nii", WINDOW), plain)


def test_a_window_clips(tmp_path: Path) -> None:
    scan = np.linspace(-1000, 1000, 60, dtype=np.float32).reshape(5, 4, 3)
    found = decode_volume(write(tmp_path / "ct.nii", scan), VolumeConfig(window=(-200, 300)))
    wanted = ((scan.T + 200) / 500).clip(0, 1)
    torch.testing.assert_close(found[:, 0], torch.from_numpy(np.ascontiguousarray(wanted)))


def test_percentiles_become_0_and_1_whatever_the_unit(tmp_path: Path) -> None:
    scan = voxels(12, 10, 8).astype(np.float32)
    config = VolumeConfig(percentiles=(10, 90))
    found = decode_volume(write(tmp_path / "mr.nii", scan), config)
    low, high = np.percentile(scan, (10, 90))
    wanted = np.ascontiguousarray(((scan.T - low) / (high - low)).clip(0, 1), np.float32)
    torch.testing.assert_close(found[:, 0], torch.from_numpy(wanted))
    again = decode_volume(write(tmp_path / "other.nii", 7 * scan + 300), config)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=0)


def test_a_few_bright_voxels_are_not_lost(tmp_path: Path) -> None:
    scan = np.zeros((20, 20, 20), np.float32)
    scan[3, 4, 5] = 8
    found = decode_volume(write(tmp_path / "rare.nii", scan), VolumeConfig())
    assert found.sum() == found[5, 0, 4, 3] == 1


def test_voxels_that_are_not_finite_are_dark(tmp_path: Path) -> None:
    scan = voxels(5, 4, 3).astype(np.float32)
    scan[0, 0, 0], scan[1, 1, 1] = np.nan, np.inf
    found = decode_volume(write(tmp_path / "holes.nii", scan), WINDOW)
    assert found[0, 0, 0, 0] == found[1, 0, 1, 1] == 0
    assert torch.isfinite(found).all()
    assert found[2, 0, 3, 4] == pytest.approx(scan[4, 3, 2] / 100)


def test_all_slices_become_the_models(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32) / 7 * 100, (5, 4, 8)).copy()
    path = write(tmp_path / "ramp.nii", ramp)
    found = decode_volume(path, WINDOW, (4, 32, 32))
    assert found.shape == (4, 1, 4, 5)
    steps = found[:, 0, 0, 0]
    assert (steps.diff() > 0.2).all()
    torch.testing.assert_close(steps + steps.flip(0), torch.ones(4))
    assert decode_volume(path, WINDOW, (16, 32, 32)).shape == (16, 1, 4, 5)


def test_pixels_become_square(tmp_path: Path) -> None:
    path = write(tmp_path / "flat.nii", voxels(6, 4, 3), np.diag([-1, -2.5, 7, 1]))
    assert decode_volume(path, WINDOW, (3, 32, 32)).shape == (3, 1, 10, 6)


def test_spacing_cuts_and_fills_about_the_centre(tmp_path: Path) -> None:
    path = write(
        tmp_path / "scan.nii",
        100 * np.ones((8, 4, 3), np.int16) - np.eye(8, 4)[..., None].astype(np.int16),
        np.diag([-1, -1, 2, 1]),
    )
    config = VolumeConfig(window=(0, 100), spacing=(2, 1, 1))
    found = decode_volume(path, config, (5, 6, 6))
    assert found.shape == (5, 1, 6, 6)
    assert (found[[0, 4]] == 0).all()
    assert (found[:, :, [0, 5]] == 0).all()
    assert (found[1:4, :, 1:5] > 0.9).all()
    finer = decode_volume(path, VolumeConfig(window=(0, 100), spacing=(1, 1, 1)))
    assert finer.shape == (6, 1, 4, 8)


def test_several_volumes_are_refused_or_the_first_is_taken(tmp_path: Path) -> None:
    series = voxels(5, 4, 3, 2)
    path = write(tmp_path / "bold.nii.gz", series)
    with pytest.raises(BadImageError, match=r"bad volume .*bold\.nii\.gz: it holds 2 volumes"):
        decode_volume(path, WINDOW)
    first = decode_volume(path, VolumeConfig(window=(0, 100), series="first"))
    assert torch.equal(first, decode_volume(write(tmp_path / "one.nii", series[..., 0]), WINDOW))


def test_one_volume_of_four_axes_is_one(tmp_path: Path) -> None:
    assert decode_volume(write(tmp_path / "one.nii", voxels(5, 4, 3, 1)), WINDOW).shape == (3, 1, 4, 5)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("part", [0.7, 0.02, 0.0])
def test_a_truncated_file_is_bad(name: str, part: float, tmp_path: Path) -> None:
    path = write(tmp_path / name, voxels(20, 20, 20))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(BadImageError, match=rf"bad volume .*{name}: "):
        decode_volume(path, WINDOW)


@pytest.mark.parametrize(
    ("scan", "reason"),
    [
        (np.full((5, 4, 3), 7, np.int16), "all its voxels have the value 7.0"),
        (np.full((5, 4, 3), np.nan, np.float32), "all its voxels have no finite value"),
        (voxels(5, 4), "it must have three axes"),
        (voxels(5, 4, 3).astype(np.complex64), "its voxels are no numbers but complex64"),
    ],
)
def test_what_shows_nothing_is_bad(scan: np.ndarray[Any, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode_volume(write(tmp_path / "scan.nii", scan), VolumeConfig())


def test_other_files_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.nii").write_bytes(b"<!DOCTYPE html>" * 50)
    with pytest.raises(BadImageError, match=r"page\.nii: ImageFileError"):
        decode_volume(tmp_path / "page.nii", WINDOW)
    monkeypatch.setattr(volumes, "MAX_VOXELS", 59)
    with pytest.raises(BadImageError, match=r"at most 59 voxels, got the shape \(5, 4, 3\)"):
        decode_volume(write(tmp_path / "large.nii", voxels(5, 4, 3)), WINDOW)
    with pytest.raises(FileNotFoundError):
        decode_volume(tmp_path / "none.nii", WINDOW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": (5, 5)}, "window must be a range"),
        ({"percentiles": (-1, 50)}, "percentiles must be a range"),
        ({"spacing": (1, 0, 1)}, "spacing must be positive"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VolumeConfig(**settings)


@pytest.mark.skipif(
    not (REAL / "anatomical.nii").is_file(), reason="this nibabel comes without its test data"
)
def test_real_brains() -> None:
    brain = decode_volume(REAL / "anatomical.nii", VolumeConfig(), (25, 32, 32))
    assert brain.shape == (25, 1, 41, 33)
    assert 0 <= brain.min() < 0.01 < 0.9 < brain.max() <= 1
    # stored from left to right, the other from right to left
    files = [nibabel.load(REAL / name) for name in ("anatomical.nii", "reoriented_anat_moved.nii")]
    assert [nibabel.aff2axcodes(file.affine)[0] for file in files] == ["L", "R"]
    other = decode_volume(REAL / "reoriented_anat_moved.nii", VolumeConfig(), (22, 32, 32))
    assert other.shape == (22, 1, 26, 21)
    stored = np.asarray(files[1].dataobj, np.float32)[::-1, ::-1].T
    assert np.corrcoef(stored.ravel(), other.flatten())[0, 1] > 0.99


@pytest.mark.parametrize("side", [1e-30, 1e-6, 2000.0, 1e20, float("nan"), float("inf")])
def test_absurd_sizes_of_voxels_are_refused(tmp_path: Path, side: float) -> None:
    path = write(tmp_path / "scan.nii", voxels(5, 4, 3))
    content = bytearray(path.read_bytes())
    # the size along the first axis, in a header that places voxels by it
    content[80:84] = np.float32(side).tobytes()
    content[252:256] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(
        BadImageError, match=r"scan\.nii: its voxels must have a (positive )?size|scan\.nii: "
    ):
        decode_volume(path, WINDOW)


@pytest.mark.parametrize("config", [WINDOW, VolumeConfig(window=(0, 100), spacing=(1, 1, 1))])
def test_a_volume_that_would_be_resampled_to_any_size_is_refused(
    tmp_path: Path, config: VolumeConfig
) -> None:
    scan = write(tmp_path / "scan.nii", voxels(40, 40, 3), np.diag([-900.0, -0.001, 1, 1]))
    if config.spacing is not None:
        scan = write(tmp_path / "scan.nii", voxels(40, 40, 40), np.diag([-900.0, -900.0, 900, 1]))
    with pytest.raises(
        BadImageError, match=r"scan\.nii: with voxels of .* mm it is resampled to .*, more than"
    ):
        decode_volume(scan, config)
