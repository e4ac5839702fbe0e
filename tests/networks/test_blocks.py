import pytest
import torch

from cifarnet.networks.blocks import ConvBlock, SeparableBlock, channel_means


@pytest.mark.parametrize("block", [ConvBlock(4, 60, 0.5), SeparableBlock(4, 60, 0.5)], ids=str)
def test_dropout_zeroes_whole_channels_in_training_only(block):
    images = torch.randn(4, 4, 8, 8)
    dropped = (block(images) == 0).all(dim=3).all(dim=2)  # [B, channels]
    assert 0.3 < dropped.float().mean() < 0.7
    assert not (block.eval()(images) == 0).all(dim=3).all(dim=2).any()


def test_channel_means():
    images = torch.randn(3, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(channel_means(images), images.mean((2, 3)))
    assert torch.autograd.gradcheck(channel_means, (images,))


def test_channel_means_do_not_overflow_in_fp16():
    images = torch.full((1, 2, 128, 128), 60.0, dtype=torch.float16)
    assert channel_means(images).tolist() == [[60.0, 60.0]]
