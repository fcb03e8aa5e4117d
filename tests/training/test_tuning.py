"""Low-rank updates act wherever they are put, and end up in the weights."""

import pytest
import torch

from tests.contracts.conftest import cases, randomize_
from vit_pytorch.training.tuning import add_lora, attention_layers, merge_lora

ENTRIES = {type_name: entry for entry in cases() if (type_name := entry.architecture.__name__)}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_updates_act_and_merge(entry):
    torch.manual_seed(0)
    model = randomize_(entry.build(**entry.tiny))
    names = attention_layers(model)
    if not names:
        with pytest.raises(ValueError, match="no linear layers of attention"):
            add_lora(model, rank=2, alpha=4)
        return
    with pytest.raises(ValueError, match=r"rank must be at most \d+, .* got 10000"):
        add_lora(model, rank=10_000, alpha=4)
    keys = set(model.state_dict())
    images = torch.randn(2, model.channels, *model.image_size)
    add_lora(model, rank=2, alpha=4)
    model.eval()
    updates = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(updates) == 2 * len(names)
    before = model(images)
    with torch.no_grad():
        for parameter in updates.values():
            parameter.normal_(std=0.1)
    after = model(images)
    assert not after.allclose(before, atol=1e-6)
    after.square().sum().backward()
    idle = [name for name, p in updates.items() if p.grad is None or not p.grad.any()]
    assert idle == []
    merge_lora(model)
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model(images), after, rtol=1e-4, atol=1e-4)
