from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cifarnet.core.errors import UserError
from cifarnet.images.digits import read_digits
from cifarnet.images.imageset import (
    ImageSet,
    Splits,
    channel_statistics,
    describe_classes,
    limited,
    resized,
    split_holdout,
)
from cifarnet.settings.data import DataSettings


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return read_digits(DataSettings(), print).train


def contents(*parts: ImageSet) -> list[bytes]:
    return sorted(image.numpy().tobytes() for part in parts for image in part.images)


def test_images_are_taken_by_index_or_by_mask(digits):
    few = digits.take(np.array([5, 2]))
    assert torch.equal(few.images, digits.images[[5, 2]])
    assert few.labels.tolist() == digits.labels[[5, 2]].tolist()
    assert few.classes == digits.classes
    assert torch.equal(few.take(np.array([False, True])).images, digits.images[[2]])


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)))
    assert min(channel_statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))[1]) > 0


def test_statistics_are_compared_up_to_rounding(digits):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    splits = Splits("x", digits, None, digits, mean, std)
    assert splits.same_normalization([float(np.float32(x)) for x in mean], std)
    assert not splits.same_normalization((0.1, 0.2, 0.30001), std)
    assert not replace(splits, std=(0.4, 0.5, 0.60001)).same_normalization(mean, std)


def test_a_limited_part_is_balanced_and_fixed(digits):
    part = limited(digits, 105, "--limit_train")
    counts = part.labels.bincount(minlength=10)
    assert counts.sum() == 105
    assert counts.max() - counts.min() == 1
    assert set(contents(part)) <= set(contents(digits))
    assert (limited(digits, 20, "--limit_train").labels.bincount(minlength=10) == 2).all()
    assert torch.equal(limited(digits, 105, "--limit_train").images, part.images)
    for limit in (0, 10**6):
        assert limited(digits, limit, "--limit_train") is digits


def test_a_class_too_small_for_its_share_gives_what_it_has(digits):
    ones = (digits.labels == 1).numpy()
    ones[np.flatnonzero(ones)[0]] = False
    part = limited(digits.take(~ones), 40, "--limit_train")
    counts = part.labels.bincount(minlength=10).tolist()
    assert counts[1] == 1
    assert sorted(counts) == [1, 4, 4, 4, 4, 4, 4, 5, 5, 5]


def test_a_part_with_fewer_images_than_classes_is_refused(digits):
    with pytest.raises(
        UserError, match="--limit_test 9 is fewer images than the 10 classes; use 10"
    ):
        limited(digits, 9, "--limit_test")


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.5, 0.999])
def test_the_held_out_part_is_stratified_and_apart(digits, fraction):
    rest, held = split_holdout(digits, fraction)
    assert len(rest) + len(held) == len(digits)
    expected = (digits.labels.bincount() * fraction + 1e-9).floor()
    assert torch.equal(held.labels.bincount(minlength=10), expected.long())
    assert contents(rest, held) == contents(digits)


def test_images_are_resized_as_pillow_does_it(digits):
    few = digits.images[:20]
    assert resized(few, 32) is few
    for size in (48, 128):
        expected = [
            np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size)))
            for image in few
        ]
        difference = resized(few, size).permute(0, 2, 3, 1).int().numpy() - np.stack(expected)
        assert np.abs(difference).max() <= 2  # both round after each of two passes


def labelled(*counts: int) -> ImageSet:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    classes = tuple(f"class {i}" for i in range(len(counts)))
    return ImageSet(torch.zeros(sum(counts), 3, 1, 1, dtype=torch.uint8), labels, classes)


def test_classes_are_told_with_their_numbers_in_one_line():
    head = "training images of the"
    assert describe_classes(labelled(7, 7)) == [f"{head} 2 classes: 7 each"]
    assert describe_classes(labelled(9, 1)) == [f"{head} 2 classes: class 0 9, class 1 1"]
    many = describe_classes(labelled(*range(10, 35)))
    assert many == [f"{head} 25 classes: from 10 (class 0) to 34 (class 24)"]


def test_a_class_ten_times_as_large_as_another_is_warned_of():
    _, warning = describe_classes(labelled(5, 1, 10))
    assert warning == (
        "warning: class 2 has 10 training images and class 1 only 1; "
        "--class_weights balanced makes all classes count the same"
    )


def test_nothing_is_held_out_for_a_fraction_of_0(digits):
    assert split_holdout(digits, 0.0) == (digits, None)


@pytest.mark.parametrize(
    ("fraction", "why"),
    [(0.001, "holds out no image; raise it"), (1 - 1e-16, "holds out every image; lower it")],
)
def test_a_fraction_that_leaves_one_part_empty_is_refused(digits, fraction, why):
    assert 0 < fraction < 1
    with pytest.raises(UserError, match=why):
        split_holdout(digits, fraction)


def test_a_checksum_depends_on_pixels_labels_and_order():
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    images = ImageSet(pixels, torch.tensor([0, 1]), ("a", "b"))
    assert images.sha256 == replace(images, classes=("c", "d")).sha256
    assert images.sha256 != replace(images, images=pixels ^ 1).sha256
    assert images.sha256 != replace(images, labels=1 - images.labels).sha256
    assert images.sha256 != images.take(np.array([1, 0])).sha256


def test_splits_stay_the_same_so_that_snapshots_keep_their_images():
    """The channel statistics of CIFAR are constants, so nothing else would notice."""
    labels = torch.tensor([0] * 20 + [1] * 20)
    images = ImageSet(torch.zeros(40, 3, 1, 1, dtype=torch.uint8), labels, ("a", "b"))
    assert split_holdout(images, 0.1)[1].names.tolist() == [10, 12, 24, 29]
    assert limited(images, 5, "").names.tolist() == [7, 10, 12, 24, 29]
