"""The network as a list of layers in the page, and what the page refuses to hold."""

import pytest
import torch
from support.exported_pages import KINDS, TOLERANCE, answers, build, write
from support.random_models import noise
from torch import nn

from cifarnet.core.errors import UserError
from cifarnet.export.page import read_page


@pytest.mark.parametrize("kind", [*KINDS, "grown 32", "attended 32"])
@torch.inference_mode()
def test_the_page_holds_the_network(tmp_path, kind):
    network, size = build(kind)
    pixels = noise(4, size)
    read = read_page(write(network, tmp_path, size))
    torch.testing.assert_close(read(pixels), answers(network, pixels), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_normalisation_whose_input_is_used_twice_is_a_layer(tmp_path):
    network = Changed(lambda self, x: self.norm(x) + x)
    network(torch.randn(8, 3, 9, 9))  # for running statistics
    network.eval()
    read = read_page(write(network, tmp_path, 9))
    torch.testing.assert_close(read(noise(2, 9)), answers(network, noise(2, 9)))


class Signs(nn.Module):
    def forward(self, x):
        return x.sign()


class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()
        self.deep = nn.Sequential(Signs())
        self.change = change

    def forward(self, x):
        return self.change(self, self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda self, x: self.act(x), "the layer GELU act"),
        (lambda self, x: self.deep(x), "the function sign in the layer Signs deep.0"),
        (lambda self, x: torch.tanh(x), "the function tanh"),
        (lambda self, x: torch.stack([x, x])[0], "the function stack"),
        (lambda self, x: x + 1, "the function add"),
        (lambda self, x: x[:, :2], "the function getitem"),
        (lambda self, x: x if x.sum() > 0 else -x, "Changed, whose layers depend on the image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_layers_are_refused_in_one_line(tmp_path, change, words):
    with pytest.raises(UserError, match=f"^the page cannot hold {words}; use another --format, "):
        write(Changed(change).eval(), tmp_path)
    assert not list(tmp_path.iterdir())
