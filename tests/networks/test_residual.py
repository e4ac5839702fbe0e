import pytest
import torch
import torch.nn.functional as F
from support.random_models import random_model

from cifarnet.networks.fast import use_fast_forms, use_plain_forms
from cifarnet.networks.residual import ResidualNet


@pytest.mark.parametrize("forms", ["plain", "fast"])
def test_evaluation_is_what_the_layers_say(forms):
    """Against plain functional calls, in 64 bits."""
    network = use_plain_forms(random_model(network="residual").build()).double().eval()
    state = network.state_dict()

    def conv(x, name):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.bn.{key}"] for key in names))

    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x = F.relu(conv(images, "stem"))
    for i in range(3):
        y = F.relu(F.max_pool2d(conv(x, f"blocks.{i}.down"), 2))
        x = y + F.relu(conv(F.relu(conv(y, f"blocks.{i}.residual.0")), f"blocks.{i}.residual.1"))
    expected = F.linear(x.flatten(2).max(2).values, state["head.weight"], state["head.bias"])
    if forms == "fast":
        use_fast_forms(network)
    torch.testing.assert_close(network(images), expected)


def test_size_and_shapes():
    assert sum(p.numel() for p in ResidualNet().parameters()) == 2_494_890
    assert ResidualNet(7)(torch.randn(2, 3, 16, 21)).shape == (2, 7)
    assert ResidualNet().eval()(torch.randn(1, 3, 8, 8)).shape == (1, 10)
    assert ResidualNet()(torch.randn(1, 3, 16, 16)).shape == (1, 10)  # a last batch of one image
