import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from policies import policy_of

from cifarnet.augment.per_image import PerImageEngine
from cifarnet.augment.policy import Policy

MEAN = (0.5, 0.4, 0.3)
FILL = np.array([128, 102, 76], dtype=np.uint8)  # round(255 * MEAN)
DRAWS = 2000


def only(**on) -> Policy:
    """The full policy, with probability 0 for all steps except those in `on`."""
    return replace(policy_of("none"), **on)


def drawn(policy: Policy, image: np.ndarray, draws: int = DRAWS, key=(1, 2, 3)) -> np.ndarray:
    """`draws` augmented versions, uint8 [draws,3,32,32], of image uint8 [3,32,32]."""
    return PerImageEngine(policy, MEAN)(np.repeat(image[None], draws, axis=0), *key)


def coordinates() -> np.ndarray:
    """Each pixel tells its place: red is 8 times the column, green 8 times the row, blue 255."""
    rows, columns = np.mgrid[:32, :32]
    return np.stack([columns * 8, rows * 8, np.full((32, 32), 255)]).astype(np.uint8)


def parameters(policy: Policy, kind: type) -> list[dict]:
    """What the transform of class `kind` drew for each of many images."""
    engine = PerImageEngine(policy, MEAN)
    transform = next(t for t in engine.transforms if isinstance(t, kind))
    apply, seen = transform.apply_with_params, []
    transform.apply_with_params = lambda params, **images: (
        seen.append(params) or apply(params, **images)
    )
    engine(np.repeat(coordinates()[None], DRAWS, axis=0), 0)
    return seen


def assert_fills(values, low, high):
    """`values` lie in [low, high], reach near both ends, and are spread evenly."""
    values = np.asarray(values)
    span = high - low
    assert values.min() >= low - 1e-9
    assert values.max() <= high + 1e-9
    assert values.min() < low + 0.02 * span
    assert values.max() > high - 0.02 * span
    assert abs(values.mean() - (low + high) / 2) < 0.03 * span


def test_the_crop_reaches_every_offset_and_fills_with_the_mean():
    images = drawn(only(crop_p=1.0), coordinates())
    offsets = set()
    for image in images:
        inside = image[2] == 255
        assert (image[:, ~inside] == FILL[:, None]).all()
        row, column = np.argwhere(inside)[0]
        offsets.add(
            (int(image[1, row, column]) // 8 - row, int(image[0, row, column]) // 8 - column)
        )
    assert offsets == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}


def test_borders_can_be_black():
    images = drawn(only(crop_p=1.0, affine_p=1.0, border="black"), coordinates(), 50)
    outside = images[:, 2] == 0  # where blue is not 255, or mixed with it
    assert outside.any()
    assert (images.transpose(0, 2, 3, 1)[outside] == 0).all()


def test_a_shift_is_never_larger_than_its_share():
    """0.05 of 32 pixels is 1.6: one whole pixel at most."""
    seen = parameters(only(affine_p=1.0, shift=0.05, scale=0.0, rotate=0.0), A.Affine)
    assert {int(p["matrix"][0, 2].round()) for p in seen} == {-1, 0, 1}


def test_half_of_the_images_are_mirrored():
    images = drawn(only(flip_p=0.5), coordinates())
    mirrored = np.array([(image == coordinates()[:, :, ::-1]).all() for image in images])
    kept = np.array([(image == coordinates()).all() for image in images])
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 0.05


def test_shift_scale_and_rotation_fill_their_ranges():
    seen = parameters(only(affine_p=0.5), A.Affine)
    assert abs(len(seen) / DRAWS - 0.5) < 0.05
    assert_fills([p["rotate"] for p in seen], -15, 15)
    assert_fills([p["scale"]["x"] for p in seen], 0.9, 1.1)
    assert all(p["scale"]["x"] == p["scale"]["y"] for p in seen)
    centre = np.array([15.5, 15.5, 1])
    shifts = np.stack([(np.asarray(p["matrix"]) @ centre - centre)[:2] for p in seen])
    np.testing.assert_allclose(shifts, shifts.round(), atol=1e-6)
    for axis in (0, 1):  # 0.0625 of 32 pixels
        assert set(shifts[:, axis].round()) == {-2, -1, 0, 1, 2}
        assert abs(shifts[:, axis].mean()) < 0.2
    images = drawn(only(affine_p=1.0, shift=0.0, scale=0.0, rotate=15.0), coordinates(), 50)
    corners = images[:, :, 0, 0]
    assert ((corners == FILL).all(axis=1)).mean() > 0.3  # turned in from outside: the mean


def test_the_jitter_fills_its_ranges_in_any_order():
    seen = parameters(only(jitter_p=0.5), A.ColorJitter)
    assert abs(len(seen) / DRAWS - 0.5) < 0.05
    for name in ("brightness", "contrast", "saturation"):
        assert_fills([p[name] for p in seen], 0.8, 1.2)
    assert_fills([p["hue"] for p in seen], -0.02, 0.02)
    assert len({tuple(p["order"]) for p in seen}) == 24


def test_the_hole_is_one_square_of_the_mean_anywhere_inside():
    images = drawn(only(hole_p=0.5), np.zeros((3, 32, 32), dtype=np.uint8))
    corners = []
    for image in images:
        hole = (image == FILL[:, None, None]).all(axis=0)
        if hole.any():
            row, column = np.argwhere(hole)[0]
            assert hole.sum() == 256
            assert hole[row : row + 16, column : column + 16].all()
            corners.append((row, column))
    assert abs(len(corners) / DRAWS - 0.5) < 0.05
    assert {row for row, _ in corners} == {column for _, column in corners} == set(range(17))


def test_decisions_are_independent_of_one_another_and_of_the_neighbours():
    """This image shows whether it was mirrored, holed or jittered, each apart from the others."""
    image = np.zeros((3, 32, 32), dtype=np.uint8)
    image[:, :, :3] = 250
    brightness = {"jitter_p": 0.5, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    images = drawn(only(flip_p=0.5, hole_p=0.5, hole=8, **brightness), image, 4000)
    mirrored = images[:, 0, :, -3:].max(axis=(1, 2)) > images[:, 0, :, :3].max(axis=(1, 2))
    holed = images[:, 0, :, 3:-3].any(axis=(1, 2))
    bright = images.max(axis=(1, 2, 3))
    jittered = bright != 250
    decisions = np.stack([mirrored, holed, jittered]).astype(float)
    assert np.abs(decisions.mean(axis=1) - 0.5).max() < 0.06
    assert np.abs(np.corrcoef(decisions) - np.eye(3)).max() < 0.06
    for each in decisions:  # and from one image to the next
        assert abs(np.corrcoef(each[1:], each[:-1])[0, 1]) < 0.06


def test_equal_keys_draw_equal_changes_and_others_do_not():
    policy, image = policy_of("full"), coordinates()
    first = drawn(policy, image, 20, key=(42, 1, 2, 0))
    assert (drawn(policy, image, 20, key=(42, 1, 2, 0)) == first).all()
    for other in ((43, 1, 2, 0), (42, 2, 2, 0), (42, 1, 2, 512)):
        assert (drawn(policy, image, 20, key=other) != first).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("name", "count"), [("none", 0), ("light", 3), ("full", 6)])
def test_steps_of_probability_0_are_left_out(name, count):
    assert len(PerImageEngine(policy_of(name), MEAN).transforms) == count


def test_the_policy_none_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    assert (PerImageEngine(policy_of("none"), MEAN)(images, 1) == images).all()


def test_building_the_engine_asks_no_server():
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): print('ASKED'); raise OSError\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "from cifarnet.augment.per_image import PerImageEngine\n"
        "from cifarnet.augment.policy import build_policy\n"
        "from cifarnet.settings import Settings\n"
        "PerImageEngine(build_policy(AugmentationSettings()), (0.5, 0.5, 0.5))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
