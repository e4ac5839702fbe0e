import torch
from support.networks import reference_forward

from cifarnet.networks.build import parameter_count
from cifarnet.networks.cifarnet import CIFARNet


def test_parameters_row_by_row():
    rows = {name: parameter_count(part) for name, part in CIFARNet().named_children()}
    blocks = {"c1": 1_160, "c2": 11_112, "c3": 63_552, "c4": 95_088}
    assert rows == blocks | {"head": 3_850, "dropout": 0}


def test_the_forward_pass_is_the_published_one():
    torch.manual_seed(0)
    model = CIFARNet(dropout=(0.5,) * 4)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))  # moves the running statistics away from 0 and 1
    model.eval()
    images = torch.randn(4, 3, 45, 30)
    state = {name: value.double() for name, value in model.state_dict().items()}
    expected = reference_forward(state, images.double())
    torch.testing.assert_close(model(images).double(), expected, rtol=1e-4, atol=1e-5)
