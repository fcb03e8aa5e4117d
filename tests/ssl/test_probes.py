"""Probes find what is in features, as scikit-learn's classifiers do."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from vit_pytorch.ssl.probes import extract, fit_linear, knn_accuracy, linear_accuracy, nearest_neighbours


def clusters(count: int = 60, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Give points around three directions, and which."""
    labels = torch.arange(count) % 3
    directions = torch.eye(3, 5)
    return directions[labels] + spread * torch.randn(count, 5), labels


def test_votes_in_plain_loops():
    features, labels = clusters()
    queries = torch.randn(4, 5)
    votes = nearest_neighbours(features, labels, queries, neighbours=7, temperature=0.2, batch=3)
    for query, vote in zip(queries, votes, strict=True):
        cosine = torch.stack([torch.dot(query, f) / query.norm() / f.norm() for f in features])
        want = torch.zeros(3)
        for place in cosine.argsort(descending=True)[:7]:
            want[labels[place]] += torch.exp((cosine[place] - 1) / 0.2)
        torch.testing.assert_close(vote, want)


def test_scale_of_features_does_not_matter():
    features, labels = clusters()
    queries = torch.randn(4, 5)
    votes = nearest_neighbours(features, labels, queries)
    scaled = nearest_neighbours(100 * features, labels, 0.01 * queries)
    torch.testing.assert_close(votes, scaled)


def test_clear_clusters_are_found():
    features, labels = clusters(spread=0.05)
    assert knn_accuracy(features[:30], labels[:30], features[30:], labels[30:], neighbours=5) == 1.0
    assert linear_accuracy(features[:30], labels[:30], features[30:], labels[30:]) == 1.0
    assert knn_accuracy(features, labels, features, (labels + 1) % 3, neighbours=5) == 0.0


def test_linear_probe_is_logistic_regression():
    features, labels = clusters(120)
    # Features of different means and scales, of which one is constant.
    features = torch.cat([features * torch.tensor([1, 10, 0.1, 3, 1]) + 5, torch.full((120, 1), 7.0)], dim=1)
    probe = fit_linear(features, labels, penalty=0.01, steps=500)
    inputs = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-9)
    inputs[:, 5] = 0
    theirs = LogisticRegression(C=1 / (0.01 * 120), tol=1e-8, max_iter=1000).fit(inputs, labels)
    want = torch.from_numpy(theirs.predict_proba(inputs)).float()
    torch.testing.assert_close(probe(features).softmax(-1), want, rtol=0, atol=2e-3)
    assert not any(parameter.requires_grad for parameter in probe.parameters())


def test_extract_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4))
    model.train()
    model[2].eval()
    images = torch.randn(7, 3, 2, 2)
    found = extract(model, images, batch=3)
    assert [module.training for module in model] == [True, True, False]
    assert not found.requires_grad
    torch.testing.assert_close(found, model[2](images.flatten(1)))


def test_wrong_settings():
    features, labels = clusters(9)
    with pytest.raises(ValueError, match="between 1 and the 9 images, got 10"):
        nearest_neighbours(features, labels, features, neighbours=10)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        nearest_neighbours(features, labels, features, neighbours=1, temperature=0)
    with pytest.raises(ValueError, match="penalty is at least 0, got -1"):
        fit_linear(features, labels, penalty=-1)
