import math

import pytest
import torch

from vit_pytorch.ssl.collapse import feature_spread, prediction_entropy, usage_entropy


def test_spread_of_features():
    assert feature_spread(torch.randn(4096, 64)) == pytest.approx(1, abs=0.02)
    line = torch.rand(100, 1) * torch.randn(1, 64)
    assert feature_spread(line) == pytest.approx(0, abs=1e-5)
    near = feature_spread(torch.randn(1, 64) + 0.05 * torch.randn(4096, 64))
    assert 0.01 < near < 0.1


def test_entropies_tell_the_two_collapses_apart():
    same, sure = torch.zeros(16, 8), torch.zeros(16, 8)
    sure[:, 3] = 100
    spread = 100 * torch.eye(8).repeat(2, 1)
    for logits, each, used in ((same, math.log(8), math.log(8)), (sure, 0, 0), (spread, 0, math.log(8))):
        assert prediction_entropy(logits) == pytest.approx(each, abs=1e-5)
        assert usage_entropy(logits) == pytest.approx(used, abs=1e-5)


def test_one_row_shows_nothing():
    for measure in (feature_spread, usage_entropy):
        with pytest.raises(ValueError, match="at least 2 rows"):
            measure(torch.randn(1, 8))
