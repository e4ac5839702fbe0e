import itertools
import pickle
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from cifarnet.core.errors import UserError
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
NOISE = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8, generator=NOISE)


class Linear(nn.Module):
    """Logits that depend on each pixel, and on each one in another way."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3 * 6 * 6, len(CLASSES), generator=generator) / 5)

    def forward(self, images):
        return images.flatten(1) @ self.weight


def halve(pixels):
    return pixels.float() / 128 - 1


def classifier(seed: int = 0, classes=CLASSES, size: int = 6, amp: bool = True) -> Classifier:
    return TorchClassifier(Linear(seed), halve, classes, size, f"net{seed}", amp)


def probabilities(logits) -> np.ndarray:
    """The softmax of logits [N,C] in 64 bits, by its definition."""
    shifted = np.asarray(logits, np.float64)
    powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_hand(seed: int, pixels: np.ndarray) -> np.ndarray:
    """The probabilities of `classifier(seed)` in 64 bits."""
    images = pixels.reshape(len(pixels), -1).astype(np.float64) / 128 - 1
    return probabilities(images @ Linear(seed).weight.detach().double().numpy())


# --- ensembles ---


@given(
    some.integers(1, 5), some.integers(2, 12), some.floats(0.01, 1e4), some.integers(0, 2**32 - 1)
)
def test_the_mean_is_that_of_the_probabilities(members, classes, scale, seed):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(members, 4, classes))
    logits = logits.astype(np.float32)
    expected = np.mean([probabilities(part) for part in logits], axis=0)
    found = log_mean(map(torch.from_numpy, logits))
    assert (found.dtype, found.shape) == (torch.float32, (4, classes))
    np.testing.assert_allclose(found.double().exp(), expected, atol=2e-6)
    likely = expected > 1e-30
    np.testing.assert_allclose(
        found.numpy()[likely], np.log(expected[likely]), atol=1e-4, rtol=1e-6
    )


def test_unlikely_classes_stay_apart_where_their_probabilities_underflow():
    logits = torch.tensor([[0.0, -500.0, -400.0]])
    assert log_mean([logits, logits]).argsort(descending=True).tolist() == [[0, 2, 1]]


def test_an_ensemble_averages_probabilities():
    ensemble = Ensemble([classifier(seed) for seed in range(3)])
    assert (ensemble.classes, ensemble.size, ensemble.source) == (CLASSES, 6, "net0,net1,net2")
    expected = np.mean([by_hand(seed, PIXELS.numpy()) for seed in range(3)], axis=0)
    with torch.inference_mode():
        np.testing.assert_allclose(ensemble(PIXELS).exp(), expected, atol=1e-5)


@torch.inference_mode()
def test_a_network_with_itself_has_its_probabilities_and_the_order_does_not_matter():
    one, other = classifier(0), classifier(1)
    alone = one(PIXELS).softmax(1)
    torch.testing.assert_close(Ensemble([one, one])(PIXELS).exp(), alone)
    either, reverse = (Ensemble(pair)(PIXELS).exp() for pair in ((one, other), (other, one)))
    torch.testing.assert_close(either, reverse)
    assert (either - alone).abs().max() > 0.1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (classifier(1, size=8), "net0 takes images of 6 pixels, net1 of 8"),
        (classifier(1, CLASSES[:2]), "net0 knows 3 classes, net1 2"),
        (classifier(1, ("ant", "cat", "bee")), "net0 has bee as class 2, net1 cat"),
    ],
)
def test_networks_that_do_not_fit_together_are_refused(other, words):
    with pytest.raises(UserError) as caught:
        Ensemble([classifier(0), classifier(0), other])
    assert str(caught.value) == (
        f"{words}; name networks with the same classes, in the same order, and the same image size"
    )


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
        assert len(found) == len(expected[tta]) == {"none": 1, "flip": 2, "shift": 18}[tta]
        assert {view.tobytes() for view in found} == {view.tobytes() for view in expected[tta]}
    assert np.array_equal(pixels.numpy(), plain)


@torch.inference_mode()
@pytest.mark.parametrize("tta", ["flip", "shift"])
def test_augmentation_averages_the_probabilities_of_the_views(tta):
    augmented = Augmented(classifier(), tta)
    assert (augmented.classes, augmented.size, augmented.source) == (CLASSES, 6, "net0")
    found = augmented(PIXELS)
    expected = np.mean([by_hand(0, view.numpy()) for view in views(PIXELS, tta)], axis=0)
    np.testing.assert_allclose(found.exp(), expected, atol=1e-5)
    torch.testing.assert_close(augmented(PIXELS.flip(3)), found)  # of the mirror images
    assert (classifier()(PIXELS.flip(3)) - classifier()(PIXELS)).abs().max() > 0.1


@torch.inference_mode()
def test_an_ensemble_with_augmentation_is_the_ensemble_of_the_augmented():
    members = [classifier(0), classifier(1)]
    outer = Augmented(Ensemble(members), "flip")
    inner = Ensemble([Augmented(member, "flip") for member in members])
    torch.testing.assert_close(outer(PIXELS), inner(PIXELS))
    assert (outer.tta, classifier().tta) == ("flip", "none")


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(UserError, match="no test-time augmentation 'crop'; use none, flip, shift"):
        Augmented(classifier(), "crop")


@torch.inference_mode()
def test_views_pass_one_after_the_other():
    seen, alive = [], []

    class Noting(Classifier):
        def forward(self, pixels):
            seen.append(weakref.ref(pixels))
            alive.append(sum(ref() is not None for ref in seen))
            return torch.zeros(len(pixels), 3)

    assert Augmented(Noting(CLASSES, 6, "noting"), "shift")(PIXELS).shape == (5, 3)
    assert len(seen) == 18
    assert max(alive) <= 2  # the one before is gone, or its mirror image is on its way


# --- one network ---


@torch.inference_mode()
@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: Ensemble([one, one])])
def test_an_autocast_reaches_only_networks_that_were_trained_with_it(wrap):
    exact = wrap(classifier())(PIXELS)
    for amp in (True, False):
        one = wrap(classifier(amp=amp))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(one(PIXELS).float(), exact) == (not amp)
        assert torch.equal(one(PIXELS), exact)


def test_classifiers_are_in_evaluation_mode_and_can_be_pickled():
    ensemble = Augmented(Ensemble([classifier(0), classifier(1)]), "flip")
    assert not any(part.training for part in ensemble.modules())
    again = pickle.loads(pickle.dumps(ensemble))
    with torch.inference_mode():
        assert torch.equal(again(PIXELS), ensemble(PIXELS))
