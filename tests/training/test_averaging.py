import torch
from torch import nn

from cifarnet.core.device import init_process
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.training.averaging import update_bn


def test_each_image_counts_the_same_in_the_running_statistics():
    """The last batch has one image."""
    network, images = nn.BatchNorm2d(2).double(), torch.rand(13, 2, 5, 5, dtype=torch.float64)
    images *= torch.arange(13)[:, None, None, None]  # another brightness each
    parts = images.split(6)
    runtime = init_process(PrecisionSettings(device="cpu"))
    for _ in range(2):  # earlier statistics do not count
        update_bn(network, [(part, torch.zeros(len(part))) for part in parts], runtime)
    torch.testing.assert_close(network.running_mean, images.mean((0, 2, 3)))
    variances = [len(part) * part.transpose(0, 1).flatten(1).var(1) for part in parts]
    torch.testing.assert_close(network.running_var, torch.stack(variances).sum(0) / 13)
    assert network.momentum == 0.1
    assert not network.training
