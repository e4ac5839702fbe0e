import pytest
import torch
from torch import nn

from cifarnet.networks.build import NETWORKS, build_model, parameter_count
from cifarnet.networks.fast import FAST_FORMS
from cifarnet.settings.network import NetworkSettings

BY_NAME = {
    "cifarnet": (174_762 - 3_850, 385),
    "lite": (174_506 - 1_290, 129),
    "residual": (2_494_890 - 2_570, 257),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_head_follows_the_data(name, classes):
    body, row_of_the_head = BY_NAME[name]
    model = build_model(NetworkSettings(network=name), classes)
    assert parameter_count(model) == body + row_of_the_head * classes
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 32, 32))
    assert (logits.shape, logits.dtype) == ((2, classes), torch.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_fast_forms_and_the_fast_layout(name):
    model = build_model(NetworkSettings(network=name), 10)
    kinds = {type(module) for module in model.modules()}
    assert kinds & set(FAST_FORMS.values())
    assert not kinds & set(FAST_FORMS)
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_each_block_has_its_dropout():
    settings = {"dropout": "0.5,0.4,0.3,0.2"}
    for other in ("lite", "residual"):
        assert build_model(NetworkSettings(network=other, **settings), 10).dropout.p == 0.2
    model = build_model(NetworkSettings(**settings), 10)
    blocks = (model.c1, model.c2, model.c3, model)
    assert [block.dropout.p for block in blocks] == [0.5, 0.4, 0.3, 0.2]
    assert model.c4.dropout.p == 0


def test_settings_grow_the_blocks_that_they_name():
    settings = NetworkSettings(attention="eca", attention_at="2,4", depth=4 / 3, width=0.5)
    model = build_model(settings, 10)
    assert [len(block.attention) for block in (model.c2, model.c3, model.c4)] == [1, 0, 1]
    assert [len(block.repeats) for block in (model.c2, model.c3, model.c4)] == [0, 0, 1]
    (repeat,) = model.c4.repeats
    assert repeat.attention
    assert repeat.attention is not model.c4.attention
    assert model.head.in_features == 192
