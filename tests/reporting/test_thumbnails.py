import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cifarnet.reporting.predictions import Predictions
from cifarnet.reporting.thumbnails import COLUMNS, MOST, choose, sheet


def random_predictions(seed: int, classes: int, images: int) -> Predictions:
    random = np.random.default_rng(seed)
    true, predicted, other = random.integers(0, classes, (3, images))
    return Predictions(true, predicted, other, *random.random((3, images)))


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 400), st.integers(0, 300))
def test_each_cell_shows_its_surest_images(seed, classes, images, room):
    found = random_predictions(seed, classes, images)
    choice = choose(found, room)
    assert len(set(choice.images.tolist())) == len(choice.images) <= room + 2 * MOST
    shown, sure = set(choice.images.tolist()), found.p_predicted
    right = found.true == found.predicted
    for wanted, order, among in (
        (choice.mistakes, -sure, ~right),
        (choice.hits, sure, right),
    ):
        expected = sorted(np.flatnonzero(among), key=lambda i: order[i])[:MOST]
        assert choice.images[wanted].tolist() == expected
    fits = room >= images
    for t in range(classes):
        for p in range(classes):
            cell = np.flatnonzero((found.true == t) & (found.predicted == p))
            cell = cell[np.argsort(-sure[cell])]
            seen = [i for i in cell.tolist() if i in shown]
            if fits:
                assert seen[:MOST] == cell[:MOST].tolist()
            in_order = [i for i in choice.images.tolist() if i in set(cell.tolist())]
            assert in_order == seen  # the surest first


def test_where_room_is_short_all_cells_get_fewer():
    found = random_predictions(0, 4, 800)  # 50 in each of 16 cells
    choice = choose(found, 16 * 5)
    assert choice.per_cell == 5
    cells = 4 * found.true + found.predicted
    assert np.bincount(cells[choice.images]).min() >= 5


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
