import pytest
import torch
import torch.nn.functional as F
from support.random_models import random_model

from cifarnet.networks.build import build_model
from cifarnet.networks.cost import multiply_adds
from cifarnet.networks.fast import use_fast_forms, use_plain_forms
from cifarnet.networks.lite import InvertedResidual, LiteNet
from cifarnet.settings.network import NetworkSettings


@pytest.mark.parametrize("forms", ["plain", "fast"])
def test_evaluation_is_what_the_layers_say(forms):
    """Against plain functional calls, in 64 bits."""
    network = use_plain_forms(random_model(network="lite").build()).double().eval()
    state = network.state_dict()

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], **options)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in names))

    def block(x, name):
        y = conv(x, f"{name}.conv1.0", padding=1, groups=x.shape[1])
        y = F.relu(norm(conv(y, f"{name}.conv1.1"), f"{name}.bn1"))
        return x + norm(conv(y, f"{name}.conv"), f"{name}.bn")

    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x = norm(conv(images, "stem.0", padding=1), "stem.1")
    for stage, blocks in enumerate((2, 4, 2), 1):
        if stage > 1:
            x = F.max_pool2d(conv(x, f"halving{stage - 1}.0"), 2)
            x = norm(x, f"halving{stage - 1}.2")
        for number in range(blocks):
            x = block(x, f"stage{stage}.{number}")
    torch.testing.assert_close(network.features(images), x)
    expected = F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])
    if forms == "fast":
        use_fast_forms(network)
    torch.testing.assert_close(network(images), expected)


def test_size_and_shapes():
    network = LiteNet()
    assert sum(p.numel() for p in network.parameters()) == 174_506 <= 174_762
    assert multiply_adds(network, 32) == 31_573_248
    half = LiteNet(width=0.5).state_dict()
    assert half["stage1.0.conv.weight"].shape == (16, 24, 1, 1)
    assert half["stage2.3.conv.weight"].shape == (32, 48, 1, 1)
    assert half["stage3.1.conv.weight"].shape == (64, 96, 1, 1)
    assert LiteNet(7)(torch.randn(2, 3, 16, 21)).shape == (2, 7)
    assert LiteNet()(torch.randn(1, 3, 8, 8)).shape == (1, 10)  # a last batch of one image


def test_each_block_gets_the_attention():
    network = build_model(NetworkSettings(network="lite", attention="eca"), 10)
    blocks = [module for module in network.modules() if isinstance(module, InvertedResidual)]
    assert [len(block.attention) for block in blocks] == [1] * 8
