"""Which batches run compiled."""

import torch
from torch import nn

from cifarnet.training.compiling import CompiledForBatches


def test_batches_of_the_first_size_are_compiled_and_others_run_as_they_are(monkeypatch):
    sizes = []

    def compile_it(network, **_):
        return lambda images: sizes.append(len(images)) or network(images)

    monkeypatch.setattr(torch, "compile", compile_it)
    network = nn.Sequential(nn.Linear(3, 2))
    form = CompiledForBatches(network, torch.device("cpu"), 1)
    for size in (4, 4, 3, 1, 4):
        images = torch.randn(size, 3)
        assert torch.equal(form(images), network(images))
    assert sizes == [4, 4, 4]


def test_weights_and_mode_are_those_of_the_network():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    form = CompiledForBatches(network, torch.device("cpu"), 1)
    assert list(form.parameters()) == list(network.parameters())
    assert len(form.state_dict()) == len(network.state_dict())
    form.eval()
    assert not network.training
