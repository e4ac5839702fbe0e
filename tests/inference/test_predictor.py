import pickle

import pytest
import torch
from PIL import Image

from cifarnet.core.errors import UserError
from cifarnet.images.normalise import Normalise
from cifarnet.images.pictures import to_pixels
from cifarnet.inference.classifier import Classifier, TorchClassifier
from cifarnet.inference.predictor import NetworkInput, PixelInput, Predictor

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)


class MeanColour(torch.nn.Module):
    """Logits are the channel means of the normalised images, so that a ranking is easy to tell."""

    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture
def predictor() -> Predictor:
    colours = ("red", "green", "blue")
    classifier = TorchClassifier(MeanColour(), NetworkInput(MEAN, STD), colours, 32, "colours")
    return Predictor(classifier, torch.device("cpu"))


@pytest.fixture
def picture(tmp_path):
    """A PNG file of one colour: `picture(name, colour)` returns its path."""

    def draw(name: str, colour) -> str:
        Image.new("RGB", (40, 20), colour).save(tmp_path / name)
        return str(tmp_path / name)

    return draw


# --- input ---


def test_pictures_are_normalised_as_in_training(picture):
    normalise = NetworkInput(MEAN, STD)
    path = picture("a.png", (200, 100, 50))
    with Image.open(path) as image:
        pixels = torch.from_numpy(to_pixels(image))
        expected = Normalise(MEAN, STD, torch.device("cpu"))(pixels[None])
        assert torch.equal(normalise(image), expected)
        assert normalise(image.convert("L").resize((70, 20))).shape == (1, 3, 32, 32)
    exact = (torch.tensor([200, 100, 50]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(expected.mean((0, 2, 3)), exact)
    before = pixels.clone()
    assert torch.equal(normalise(pixels), expected)
    assert torch.equal(pixels, before)
    torch.testing.assert_close(normalise(pixels / 255), expected, rtol=1e-5, atol=1e-5)


def test_tensors_keep_their_size_and_their_values():
    normalise = NetworkInput(MEAN, STD)
    floats = torch.rand(2, 3, 48, 40)
    before = floats.clone()
    assert normalise(floats).shape == (2, 3, 48, 40)
    assert torch.equal(floats, before)


def test_the_input_can_be_pickled_with_a_network():
    floats = torch.rand(3, 32, 32)
    normalise = NetworkInput(MEAN, STD)
    assert torch.equal(pickle.loads(pickle.dumps(normalise))(floats), normalise(floats))


def test_a_classifier_is_given_pixels(picture):
    prepare = PixelInput(16)
    with Image.open(picture("a.png", (200, 100, 50))) as image:
        pixels = prepare(image)
        assert torch.equal(pixels, torch.from_numpy(to_pixels(image, 16))[None])
    noise = torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8)
    assert torch.equal(prepare(noise), noise)
    assert torch.equal(prepare(noise[0] / 255), noise[:1])  # as torchvision gives them
    with pytest.raises(UserError, match="is no picture"):
        prepare(torch.zeros(32, 32))


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32), (32, 32), (2, 1, 32, 32)], ids=str)
def test_tensors_that_are_no_pictures_are_refused(shape):
    normalise = NetworkInput(MEAN, STD)
    with pytest.raises(UserError, match=r"is no picture; give uint8"):
        normalise(torch.zeros(shape))
    with pytest.raises(UserError, match=r"int64 \[3, 32, 32\] is no picture"):
        normalise(torch.zeros(3, 32, 32, dtype=torch.int64))


@pytest.mark.parametrize("value", [-0.1, 255.0, float("nan")])
def test_floats_of_another_range_are_refused(value):
    with pytest.raises(UserError, match=r"floats outside \[0,1\]"):
        NetworkInput(MEAN, STD)(torch.full((3, 32, 32), value))


# --- predictions ---


def test_rankings_are_the_softmax_of_the_logits(predictor):
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    means = (pixels.double() / 255).mean((2, 3))
    logits = (means - torch.tensor(MEAN)) / torch.tensor(STD)
    for ranking, expected in zip(predictor.rank(pixels), logits.softmax(1), strict=True):
        assert [share for _, share in ranking] == sorted((s for _, s in ranking), reverse=True)
        shares = dict(ranking)
        ours = [shares[name] for name in ("red", "green", "blue")]
        assert ours == pytest.approx(expected.tolist(), abs=1e-5)


def test_equally_probable_classes_stay_in_the_networks_order():
    class Same(Classifier):
        def forward(self, x):
            return torch.zeros(len(x), 20)

    classes = tuple(f"class {i}" for i in range(20))
    predictor = Predictor(Same(classes, 32, "same"), torch.device("cpu"))
    (ranking,) = predictor.rank(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert ranking == [(name, pytest.approx(0.05)) for name in classes]


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_files_are_classified_in_order_and_bad_ones_are_named(predictor, picture, batch_size):
    good = [picture(f"{colour}.png", colour) for colour in ("blue", "red", "lime")]
    paths = [good[0], "missing.png", *good[1:]]
    read = []
    outcomes = list(predictor.classify(paths, batch_size, lambda: read.append(1)))
    assert [path for path, _ in outcomes] == paths
    assert len(read) == 4
    (_, first), (_, missing), (_, second), (_, third) = outcomes
    assert [ranking[0][0] for ranking in (first, second, third)] == ["blue", "red", "green"]
    assert isinstance(missing, UserError)
    assert "missing.png" in str(missing)


def test_no_picture_of_a_batch_may_be_readable(predictor):
    ((_, outcome),) = predictor.classify(["missing.png"], 5, lambda: None)
    assert isinstance(outcome, UserError)
