import multiprocessing

import numpy as np
import pytest
import torch

from cifarnet.core.device import start
from cifarnet.core.settings import Settings
from cifarnet.images.imageset import ImageSet
from cifarnet.images.normalise import Normalise
from data import EvalBatches, TrainBatches

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def numbered_images(count: int) -> ImageSet:
    """Image i holds the value i, and so does its label."""
    values = torch.arange(count)
    return ImageSet(
        values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous(),
        values,
        ("a", "b"),
    )


def batches_of(images, **settings) -> TrainBatches:
    config = Settings(device="cpu", **{"num_workers": 0, "batch_size": 16, **settings})
    return TrainBatches(images, config, start(config), MEAN, STD)


def test_normalised_values():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    normalised = Normalise(MEAN, STD, torch.device("cpu"))(images)
    expected = (images.numpy() / 255 - np.array(MEAN).reshape(3, 1, 1)) / np.array(STD).reshape(
        3, 1, 1
    )
    assert normalised.dtype is torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(normalised.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_an_epoch_shows_each_image_once_the_last_batch_what_is_left(engine):
    train = batches_of(numbered_images(50), augment="none", augment_engine=engine)
    assert len(train) == 4
    orders = []
    for epoch in (1, 2):
        seen = list(train.epoch(epoch))
        assert [len(labels) for _, labels in seen] == [16, 16, 16, 2]
        labels = torch.cat([labels for _, labels in seen])
        assert sorted(labels.tolist()) == list(range(50))
        pixels = (
            torch.cat([images[:, 0, 0, 0] for images, _ in seen]) * STD[0] * 255 + MEAN[0] * 255
        )
        assert torch.equal(pixels.round().long(), labels)
        orders.append(labels.tolist())
    assert orders[0] != orders[1] != list(range(50))


def test_closed_batches_have_no_workers_left():
    train = batches_of(numbered_images(50), num_workers=1)
    assert len(list(train.epoch(1))) == 4
    assert multiprocessing.active_children()
    train.close()
    assert not multiprocessing.active_children()
    assert len(train) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(workers):
    images = numbered_images(50)
    alone, shared = batches_of(images), batches_of(images, num_workers=workers)
    for epoch in (1, 2, 7):
        for (a, a_labels), (b, b_labels) in zip(
            alone.epoch(epoch), shared.epoch(epoch), strict=True
        ):
            assert torch.equal(a, b)
            assert torch.equal(a_labels, b_labels)


def test_the_batched_engine_needs_no_workers_and_shows_the_same_images_in_the_same_order():
    images = numbered_images(50)
    batched = batches_of(images, num_workers=3, augment_engine="batched")
    assert batched.workers == 0
    for (a, a_labels), (b, b_labels) in zip(
        batched.epoch(3), batches_of(images).epoch(3), strict=True
    ):
        assert torch.equal(a_labels, b_labels)
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


@pytest.mark.parametrize("batch_size", [7, 50])
def test_the_batched_engine_sees_the_same_images_in_batches_of_any_size(batch_size):
    images = numbered_images(50)
    epochs = (
        batches_of(images, augment_engine="batched", batch_size=size).epoch(2)
        for size in (batch_size, 16)
    )
    one, other = (torch.cat([x for x, _ in epoch]) for epoch in epochs)
    assert torch.equal(one, other)
    assert torch.equal(images.images, numbered_images(50).images)


def test_batches_augmented_together_or_alone_are_the_same():
    images = numbered_images(50)
    together, alone = (batches_of(images, augment_engine="batched") for _ in range(2))
    alone.loader.ahead = 1
    assert together.loader.ahead > 1
    for (a, _), (b, _) in zip(together.epoch(1), alone.epoch(1), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_epochs_seeds_and_batches_draw_anew(engine):
    images = ImageSet(
        numbered_images(50).images[:1].expand(40, -1, -1, -1).contiguous() + 200,
        torch.zeros(40),
        (),
    )
    first, second = (
        torch.cat([x for x, _ in batches_of(images, augment_engine=engine).epoch(epoch)])
        for epoch in (1, 2)
    )
    other = torch.cat([x for x, _ in batches_of(images, augment_engine=engine, seed=1).epoch(1)])
    again = torch.cat([x for x, _ in batches_of(images, augment_engine=engine).epoch(1)])
    assert torch.equal(first, again)
    for one, two in ((first, second), (first, other), (first[:16], first[16:32])):
        assert not torch.equal(one, two)


@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_the_global_generator_is_left_alone(engine):
    train = batches_of(numbered_images(20), augment_engine=engine)
    state = torch.get_rng_state()
    list(train.epoch(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_takes_each_image_once_in_order():
    held_out = EvalBatches(numbered_images(50), 16, start(Settings(device="cpu")), MEAN, STD)
    for _ in range(2):
        labels = torch.cat([labels for _, labels in held_out])
        assert labels.tolist() == list(range(50))
