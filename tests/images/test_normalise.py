import numpy as np
import torch

from cifarnet.images.normalise import Normalise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def test_normalised_values():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    kept = images.clone()
    normalised = Normalise(MEAN, STD, torch.device("cpu"))(images)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    assert normalised.dtype is torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(normalised.numpy(), (images.numpy() / 255 - mean) / std, atol=1e-5)
    assert torch.equal(images, kept)
