import pytest
import torch
import torch.nn.functional as F
from support.random_models import random_model

from cifarnet.networks.cost import multiply_adds
from cifarnet.networks.fast import use_fast_forms, use_plain_forms
from cifarnet.networks.lite import LiteNet


@pytest.mark.parametrize("forms", ["plain", "fast"])
def test_evaluation_is_what_the_layers_say(forms):
    """Against plain functional calls, in 64 bits."""
    network = use_plain_forms(random_model(network="lite").build()).double().eval()
    state = network.state_dict()

    def conv(x, name):
        return F.conv2d(x, state[f"{name}.weight"], padding=1)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in names))

    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x = F.relu(norm(conv(images, "stem.conv"), "stem.bn"))
    for block in ("block1", "block2"):
        x = F.relu(norm(F.max_pool2d(conv(x, f"{block}.conv"), 2), f"{block}.bn"))
        y = F.relu(norm(conv(x, f"{block}.conv1"), f"{block}.bn1"))
        x = F.relu(x + norm(conv(y, f"{block}.conv2"), f"{block}.bn2"))
    torch.testing.assert_close(network.features(images), x)
    expected = F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])
    if forms == "fast":
        use_fast_forms(network)
    torch.testing.assert_close(network(images), expected)


def test_size_and_shapes():
    network = LiteNet()
    assert sum(p.numel() for p in network.parameters()) == 158_922 <= 174_762
    assert multiply_adds(network, 32) == 37_454_464
    assert [
        LiteNet(width=0.5).state_dict()[f"{name}.weight"].shape
        for name in ("stem.conv", "block1.conv", "block2.conv", "head")
    ] == [(16, 3, 3, 3), (24, 16, 3, 3), (32, 24, 3, 3), (10, 32)]
    assert LiteNet(7)(torch.randn(2, 3, 16, 21)).shape == (2, 7)
    assert LiteNet()(torch.randn(1, 3, 8, 8)).shape == (1, 10)  # a last batch of one image


def test_logits_are_32_bit_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert LiteNet()(torch.randn(2, 3, 32, 32)).dtype is torch.float32
