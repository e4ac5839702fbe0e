"""Which batches run compiled."""

import pytest
import torch
from torch import nn

from cifarnet.core.errors import UserError
from cifarnet.training import compiling


@pytest.fixture
def compiled_sizes(monkeypatch) -> list[int]:
    """The sizes of the batches that ran compiled. No compiler is needed."""
    sizes = []

    def compile_it(network, device, parts):
        return lambda images: sizes.append(len(images)) or network(images)

    monkeypatch.setattr(compiling, "compiled", compile_it)
    return sizes


def form_of(network: nn.Module) -> nn.Module:
    return compiling.CompiledForBatches(network, torch.device("cpu"), 1)


def test_batches_of_the_first_size_are_compiled_and_others_run_as_they_are(compiled_sizes):
    network = nn.Sequential(nn.Linear(3, 2))
    form = form_of(network)
    for size in (4, 4, 3, 1, 4):
        images = torch.randn(size, 3)
        assert torch.equal(form(images), network(images))
    assert compiled_sizes == [4, 4, 4]


def test_weights_and_mode_are_those_of_the_network(compiled_sizes):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    form = form_of(network)
    assert list(form.parameters()) == list(network.parameters())
    assert len(form.state_dict()) == len(network.state_dict())
    form.eval()
    assert not network.training


@pytest.mark.parametrize(
    ("device", "language"), [("cpu", r"C\+\+: install g"), ("cuda", "C: install gcc")]
)
def test_the_compiler_that_is_missing_is_named(monkeypatch, device, language):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=f"--compile needs a compiler of {language}"):
        compiling.compiled(nn.Linear(3, 2), torch.device(device))


def test_header_files_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="needs the header files of Python: install python3-dev"):
        compiling.compiled(nn.Linear(3, 2), torch.device("cpu"))
