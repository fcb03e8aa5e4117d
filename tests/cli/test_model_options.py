"""Options of a model that have settings of their own, on the command line and in configuration files."""

import pytest
import yaml

from vit_pytorch.cli.layers import UsageError
from vit_pytorch.cli.train import read_command, train_parser
from vit_pytorch.registry import find_entry

VIT = ["--model.name=vit_tiny_patch16_224"]


def model(*arguments):
    config, _ = read_command([*VIT, *arguments], None)
    return config.model


def test_settings_join_their_option():
    found = model(
        "--model.positions", "rope", "--model.positions.theta", "50", "--model.head.zero_init", "true"
    )
    assert found["positions"] == {"kind": "rope", "theta": 50}
    assert found["head"] == {"kind": "linear", "zero_init": True}
    assert model("--model.positions=learned+rope_mixed", "--model.positions.theta=5")["positions"] == [
        {"kind": "learned"},
        {"kind": "rope_mixed", "theta": 5},
    ]
    assert model("--model.hyper_connections=2", "--model.hyper_connections.dynamic=false")[
        "hyper_connections"
    ] == {"kind": "hyper", "streams": 2, "dynamic": False}


def test_settings_join_what_the_named_model_has():
    config, _ = read_command(["--model.name=vit_small_patch16_rope_224", "--model.positions.theta=20"], None)
    assert config.model["positions"] == {"kind": "rope", "theta": 20}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.positions.theta=50"], "positions='learned' has no setting theta"),
        (["--model.positions=rope", "--model.positions.base=50"], "positions='rope' has no setting base"),
        (["--model.positions=rope", "--model.positions.theta=-1"], "theta must be a number in .*, got -1"),
    ],
)
def test_settings_of_nothing_are_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        model(*arguments)


def test_flat_names_of_version_0_1():
    with pytest.warns(FutureWarning, match=r"--model.rope_theta has a new form: --model.positions.theta"):
        found = model("--model.positions", "rope", "--model.rope_theta", "50")
    assert found["positions"] == {"kind": "rope", "theta": 50}
    with pytest.warns(FutureWarning, match=r"new form: --model.stem.patch_norm"):
        assert model("--model.stem=linear", "--model.patch_norm", "true")["stem"] == {
            "kind": "linear",
            "patch_norm": True,
        }


def test_configuration_of_version_0_1(tmp_path):
    old = {"name": "vit_tiny_patch16_224", "positions": "rope", "rope_theta": 50.0, "stem": "linear"}
    old |= {"patch_norm": False, "class_token": None, "head_zero_init": True, "hyper_static": False}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": old}))
    found = read_command([f"--config={file}"], None)[0].model
    assert found["positions"] == {"kind": "rope", "theta": 50.0}
    assert found["head"] == {"kind": "linear", "zero_init": True}
    assert (found["stem"], found["class_token"]) == ("linear", False)


def test_help_describes_the_arguments_that_all_models_share() -> None:
    text = " ".join(train_parser(find_entry("vit_tiny_patch16_224")).format_help().split())
    assert "hidden dimension of the feed-forward. (required" in text
    assert "dropout after the linear layers of a model's blocks" in text
    # What a model says of an argument comes before what all models say.
    assert '"map" an attention pool of the patches' in text


def test_words_of_other_models_are_understood(tmp_path):
    cct = ["--model.name=cct_2_3x2_32", "--model.image_size", "28"]
    assert read_command(cct, None)[0].model["img_size"] == 28
    assert (
        read_command([*cct[:1], "--model.image_size=28", "--model.depth=3"], None)[0].model["num_layers"] == 3
    )
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: cct_2_3x2_32, image_size: 24}")
    assert read_command([f"--config={config}"], None)[0].model["img_size"] == 24
    assert model("--model.img_size=48", "--model.num_layers=3")["image_size"] == 48
