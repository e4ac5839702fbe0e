import numpy as np

from cifarnet.reporting.map_tiles import SIDE, map_tiles


def test_both_maps_of_an_image_have_one_scale_and_128_is_zero():
    maps = np.zeros((3, 2, SIDE, SIDE), dtype=np.float32)
    maps[0, 0, 2, 3], maps[0, 1, 5, 6] = 4, -2
    maps[1, 1, 0, 0] = -0.5
    tiles = map_tiles(maps)
    assert tiles[0, 0, 2, 3] == 255 and tiles[0, 1, 5, 6] in (64, 65)
    assert tiles[1, 1, 0, 0] == 1
    assert (tiles[2] == 128).all()


def test_maps_of_other_sizes_are_resized():
    maps = np.ones((1, 2, 40, 24), dtype=np.float32)
    tiles = map_tiles(maps)
    assert tiles.shape == (1, 3, SIDE, SIDE) and (tiles == 255).all()
