import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cifarnet.reporting.predictions import Predictions
from cifarnet.reporting.thumbnails import COLUMNS, MOST, UNSURE, choose, sheet


def random_predictions(seed: int, classes: int, images: int) -> Predictions:
    random = np.random.default_rng(seed)
    true, predicted, other = random.integers(0, classes, (3, images))
    shares = random.random((images, classes))
    return Predictions(true, predicted, other, *random.random((3, images)), shares)


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 400), st.integers(0, 300))
def test_each_cell_shows_its_surest_images(seed, classes, images, room):
    predictions = random_predictions(seed, classes, images)
    choice = choose(predictions, room)
    shown, sure = choice.images.tolist(), predictions.p_predicted
    assert len(set(shown)) == len(shown) <= room + 3 * MOST
    right = predictions.true == predictions.predicted
    unsure = right & (sure < UNSURE)
    for wanted, order, among in ((choice.mistakes, -sure, ~right), (choice.hits, sure, unsure)):
        expected = sorted(np.flatnonzero(among), key=lambda i: order[i])[:MOST]
        assert choice.images[wanted].tolist() == expected
    for true, predicted in itertools.product(range(classes), repeat=2):
        cell = np.flatnonzero((predictions.true == true) & (predictions.predicted == predicted))
        cell = sorted(cell.tolist(), key=lambda i: -sure[i])
        seen = [i for i in cell if i in shown]
        assert [i for i in shown if i in cell] == seen  # the surest first
        assert room < images or seen[:MOST] == cell[:MOST]
        if room >= classes**2:  # all cells get as many
            assert seen[: choice.per_cell] == cell[: choice.per_cell]


@pytest.mark.parametrize(("count", "size", "side"), [(1, 128, 64), (COLUMNS + 3, 32, 32)])
def test_the_sheet_holds_the_images_in_order(count, size, side):
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (count, 3, 1, 1), dtype=np.uint8)
    images = colours.repeat(size, 2).repeat(size, 3)
    with Image.open(io.BytesIO(sheet(images))) as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (side * -(-count // COLUMNS), side * COLUMNS, 3)
    for k in range(count):
        x, y = side * (k % COLUMNS), side * (k // COLUMNS)
        tile = pixels[y : y + side, x : x + side]
        assert abs(tile - colours[k, :, 0, 0]).max() <= 4  # neighbours do not shine through
