import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.random_models import noise, random_model
from support.snapshots import make_trained
from torch import nn

from cifarnet.core.errors import UserError
from cifarnet.images.normalise import Normalise
from cifarnet.inference.classifier import (
    Augmented,
    Classifier,
    Ensemble,
    TorchClassifier,
    log_mean,
    views,
)
from cifarnet.settings.evaluation import TTA

CLASSES = ("ant", "bee", "cat")
PIXELS = noise(5, 6)


class Linear(Classifier):
    """Logits that depend on each pixel, and on each one in another way."""

    def __init__(self, seed: int = 0, classes=CLASSES, size: int = 6) -> None:
        super().__init__([make_trained(classes=classes, image_size=size, source=f"net{seed}")])
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3 * 6 * 6, 3, generator=generator) / 5)

    def logits(self, pixels):
        return (pixels.float() / 128 - 1).flatten(1) @ self.weight


def probabilities(logits) -> np.ndarray:
    """The softmax of logits [N,C] in 64 bits, by its definition."""
    shifted = np.asarray(logits, np.float64)
    powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_hand(seed: int, pixels: np.ndarray) -> np.ndarray:
    """The probabilities of `Linear(seed)` in 64 bits."""
    images = pixels.reshape(len(pixels), -1).astype(np.float64) / 128 - 1
    return probabilities(images @ Linear(seed).weight.detach().double().numpy())


# --- ensembles ---


@given(st.integers(1, 5), st.integers(2, 12), st.floats(0.01, 1e4), st.integers(0, 2**32 - 1))
def test_the_mean_is_that_of_the_probabilities(members, classes, scale, seed):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(members, 4, classes))
    logits = logits.astype(np.float32)
    expected = np.mean([probabilities(part) for part in logits], axis=0)
    ours = log_mean(map(torch.from_numpy, logits))
    assert (ours.dtype, ours.shape) == (torch.float32, (4, classes))
    np.testing.assert_allclose(ours.double().exp(), expected, atol=2e-6)
    likely = expected > 1e-30
    np.testing.assert_allclose(ours.numpy()[likely], np.log(expected[likely]), atol=1e-4, rtol=1e-6)


def test_unlikely_classes_stay_apart_where_their_probabilities_underflow():
    logits = torch.tensor([[0.0, -500.0, -400.0]])
    assert log_mean([logits, logits]).argsort(descending=True).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Linear(1, size=8), "net0 takes images of 6 pixels, net1 of 8; name"),
        (Linear(1, CLASSES[:2]), r"class names differ: net0 knows 3 .*; net1 has 2 \("),
        (Linear(1, ("ant", "cat", "bee")), r".*\(ant, bee, cat\); net1 .*\(ant, cat, bee\)"),
    ],
)
def test_networks_that_do_not_fit_together_are_refused(other, words):
    with pytest.raises(UserError, match=f"^{words}"):
        Ensemble([Linear(0), Linear(0), other])


# --- test-time augmentation ---


def test_views_are_those_of_plain_slicing():
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    plain = pixels.numpy()
    padded = np.pad(plain, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    expected = {
        "none": [plain],
        "flip": [plain, plain[..., ::-1]],
        "shift": [
            padded[:, :, top : top + 5, left : left + 7][..., ::step]
            for top, left, step in itertools.product((0, 1, 2), (0, 1, 2), (1, -1))
        ],
    }
    for tta in TTA:
        found = [view.numpy() for view in views(pixels, tta)]
        assert {view.dtype for view in found} == {np.dtype(np.uint8)}
        assert len(found) == len(expected[tta])
        assert {view.tobytes() for view in found} == {view.tobytes() for view in expected[tta]}
    assert np.array_equal(pixels.numpy(), plain)


@torch.inference_mode()
@pytest.mark.parametrize("tta", ["flip", "shift"])
def test_augmentation_averages_the_probabilities_of_the_views(tta):
    plain, augmented = Linear(), Augmented(Linear(), tta)
    assert (augmented.classes, augmented.image_size, augmented.source) == (CLASSES, 6, "net0")
    expected = np.mean([by_hand(0, view.numpy()) for view in views(PIXELS, tta)], axis=0)
    np.testing.assert_allclose(augmented(PIXELS), expected, atol=1e-5)
    torch.testing.assert_close(augmented.logits(PIXELS).softmax(1), augmented(PIXELS))
    torch.testing.assert_close(augmented(PIXELS.flip(3)), augmented(PIXELS))  # mirror images
    assert (plain(PIXELS.flip(3)) - plain(PIXELS)).abs().max() > 0.1


@torch.inference_mode()
def test_views_pass_one_after_the_other():
    seen, alive = [], []

    class Noting(Linear):
        def logits(self, pixels):
            seen.append(weakref.ref(pixels))
            alive.append(sum(ref() is not None for ref in seen))
            return torch.zeros(len(pixels), 3)

    assert Augmented(Noting(), "shift")(PIXELS).shape == (5, 3)
    assert len(seen) == 18
    assert max(alive) <= 2  # the one before is gone, or its mirror image is on its way


# --- one network ---

IMAGES = noise(4)


@torch.inference_mode()
@pytest.mark.parametrize("amp", [False, True])
def test_the_logits_are_those_of_the_batches_of_a_run_bit_for_bit(amp):
    """A run evaluates its network on batches that are normalised outside of it."""
    model = random_model(width=0.1, amp=amp)
    classifier = TorchClassifier(model)
    assert classifier.infos == [model]
    normalised = Normalise(model.mean, model.std, torch.device("cpu"))(IMAGES)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        assert torch.equal(classifier.logits(IMAGES), model.build()(normalised))


@torch.inference_mode()
@pytest.mark.parametrize("amp", [None, True, False])
def test_an_autocast_reaches_only_networks_that_were_trained_with_it(amp):
    """Unless the caller decides."""
    for trained_with in (False, True):
        reached = trained_with if amp is None else amp
        one = TorchClassifier(random_model(width=0.1, amp=trained_with), amp)
        exact = one.logits(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            both = Ensemble([one, one]).logits(IMAGES)
        assert torch.equal(both, log_mean([exact, exact])) == (not reached)


def test_probabilities_need_no_detach_and_pixels_of_another_size_are_refused():
    classifier = TorchClassifier(random_model(width=0.1))
    assert classifier(IMAGES).numpy().sum(axis=1) == pytest.approx(1)
    assert classifier.logits(IMAGES).requires_grad  # for class maps
    for wrong in (noise(2, 48), IMAGES.float() / 255, IMAGES[0]):
        with pytest.raises(UserError, match=r"is not the input of .*classifier.pixels\(image\)"):
            classifier(wrong)
    large = noise(1, 64)
    picture = Image.fromarray(large[0].permute(1, 2, 0).numpy())
    for tensor in (large[0], large, large / 255):
        pixels = classifier.pixels(tensor)
        assert (pixels.shape, pixels.dtype) == ((1, 3, 32, 32), torch.uint8)
        expected = picture.resize((32, 32), Image.Resampling.BICUBIC)
        difference = pixels[0].permute(1, 2, 0).int() - torch.tensor(np.array(expected)).int()
        assert difference.abs().max() <= 1
