import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cifarnet.images.digits import read_digits
from cifarnet.images.imageset import ImageSet
from cifarnet.settings.data import DataSettings


def read(size: int = 32) -> tuple[ImageSet, ImageSet]:
    dataset = read_digits(DataSettings(image_size=size), print)
    return dataset.train, dataset.test


def test_digits_are_real_images_in_the_form_of_all_others():
    train, test = read()
    assert len(train) + len(test) == 1797
    assert abs(len(test) / 1797 - 0.2) < 0.01
    for part in (train, test):
        assert part.images.dtype is torch.uint8
        assert part.images.shape[1:] == (3, 32, 32)
        assert part.labels.dtype is torch.int64
        assert part.classes == tuple("0123456789")
        assert torch.equal(part.images[:, 0], part.images[:, 2])
    assert train.images.max() == 255
    both = [{bytes(image.numpy()) for image in part.images} for part in (train, test)]
    assert not both[0] & both[1]


@pytest.mark.parametrize("size", [32, 64])
def test_labels_belong_to_their_images(size):
    """Each enlarged digit, reduced again, is nearest to an original of the same label."""
    originals = load_digits()
    flat = originals.images.reshape(1797, 64)
    _, test = read(size)
    grey = test.images[:, :1].float() * 16 / 255
    small = torch.nn.functional.avg_pool2d(grey, size // 8).view(-1, 64)
    distance = ((small.numpy()[:, None] - flat[None]) ** 2).sum(axis=2)
    nearest = originals.target[distance.argmin(axis=1)]
    assert np.array_equal(nearest, test.labels.numpy())
