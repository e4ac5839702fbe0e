from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from PIL import Image
from scipy import ndimage

from cifarnet.images import corruption_functions as functions
from cifarnet.images.corruptions import CORRUPTIONS, Corruption, corrupt

# The constants of each severity as make_cifar_c.py lists them (see corruptions.py): in glass_blur
# the second one is always 1, in zoom_blur only the end of the range changes.
AUTHORS = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [1.06, 1.11, 1.16, 1.21, 1.26],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "synthetic_frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [
        *((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05)),
        (0.1, 0.03, 0.03),
    ],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
}
FIXED = {*("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")}
CASES = [(name, severity) for name in AUTHORS for severity in range(1, 6)]

each_case = pytest.mark.parametrize(("name", "severity"), CASES)


def picture(side: int = 32) -> np.ndarray:
    """A smooth image uint8 [S,S,3] with noise, from dark to bright."""
    waves = np.sin(np.arange(side) / 5)[:, None, None] * np.cos(np.arange(side) / 4)[:, None]
    noise = np.random.default_rng(0).normal(scale=12, size=(side, side, 3))
    return (128 + 80 * waves * [1, 0.8, -0.6] + noise).clip(0, 255).astype(np.uint8)


def changed(name: str, severity: int, image: np.ndarray, seed: int = 0, at: int = 0) -> np.ndarray:
    return corrupt(image.transpose(2, 0, 1), name, severity, seed, at).transpose(1, 2, 0)


def test_the_constants_are_those_of_the_authors():
    constants = {name: list(entry.constants.values()) for name, entry in CORRUPTIONS.items()}
    assert constants == AUTHORS | {"jpeg_quality": [90, 75, 50]}


@each_case
@pytest.mark.parametrize("side", [8, 32, 45])
def test_draws_depend_on_seed_and_position(name, severity, side):
    image = picture(side)
    once, again = (changed(name, severity, image) for _ in range(2))
    assert (once.shape, once.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(once, again)
    draws = range(2 if name in FIXED else 9)
    for others in ([(seed, 0) for seed in draws], [(0, at) for at in draws]):
        results = {changed(name, severity, image, *other).tobytes() for other in others}
        assert (len(results) == 1) == (name in FIXED)


def test_draws_depend_on_name_and_severity(monkeypatch):
    same = Corruption(lambda image, rng, constants: rng.random(image.shape), {1: 0, 2: 0})
    for name in "xy":
        monkeypatch.setitem(CORRUPTIONS, name, same)
    results = {changed(name, severity, GREY).tobytes() for name in "xy" for severity in (1, 2)}
    assert len(results) == 4


@pytest.mark.parametrize("name", [name for name in AUTHORS if name != "elastic_transform"])
def test_severity_5_is_further_from_the_image_than_severity_1(name):
    # elastic_transform moves the whole image less at higher severities, and bends it more
    image = picture().astype(float)
    near, far = (
        sum(np.abs(changed(name, severity, picture(), at=at) - image).mean() for at in range(5))
        for severity in (1, 5)
    )
    assert far > 1.05 * near > 0


# --- each formula, against a plain statement of it ---

GREY = np.full((64, 64, 3), 128, np.uint8)
RNG = np.random.default_rng


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_has_its_strength(severity):
    level, c = 128 / 255, {name: AUTHORS[name][severity - 1] for name in AUTHORS}
    noisy = functions.gaussian_noise(GREY, RNG(0), c["gaussian_noise"])
    assert noisy.std() == pytest.approx(c["gaussian_noise"], rel=0.05)
    noisy = functions.shot_noise(GREY, RNG(0), c["shot_noise"])
    assert noisy.std() == pytest.approx((level / c["shot_noise"]) ** 0.5, rel=0.05)
    noisy = functions.impulse_noise(GREY, RNG(0), c["impulse_noise"])
    for value in (0, 255):
        assert (noisy == value).mean() == pytest.approx(c["impulse_noise"] / 2, rel=0.25)


@pytest.mark.parametrize("severity", range(1, 6))
def test_defocus_blur_averages_over_a_soft_disk(severity):
    radius, sigma = AUTHORS["defocus_blur"][severity - 1]
    rows, columns = np.mgrid[-8:9, -8:9]
    disk = (np.hypot(rows, columns) <= radius).astype(float)
    soft = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    soft = np.outer(soft, soft)
    kernel = ndimage.correlate(disk, soft, mode="constant") / disk.sum() / soft.sum()
    result = functions.defocus_blur(picture(), RNG(0), (radius, sigma))
    for channel in range(3):
        expected = ndimage.correlate(picture()[..., channel] / 255, kernel, mode="mirror")
        np.testing.assert_allclose(result[..., channel], expected, atol=1e-6)


@pytest.mark.parametrize("severity", range(1, 6))
def test_glass_blur_is_a_loop_over_pixels_from_the_last_to_the_first(severity):
    sigma, rounds = AUTHORS["glass_blur"][severity - 1]

    def blurred(pixels):
        return ndimage.gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest")

    rng, pixels = RNG(7), np.uint8(blurred(picture()) * 255)
    for _ in range(rounds):
        down, right = rng.integers(-1, 1, size=(2, 30, 30))
        for y in range(31, 1, -1):
            for x in range(31, 1, -1):
                a, b = pixels[y, x], pixels[y + down[y - 2, x - 2], x + right[y - 2, x - 2]]
                a[:], b[:] = b, a  # of views: the swap is a copy
    result = functions.glass_blur(picture(), RNG(7), (sigma, rounds))
    np.testing.assert_array_equal(result, blurred(pixels))


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("degrees", [-45.0, -20.0, 0.0, 38.0, 45.0])
def test_motion_blur_averages_along_a_line(severity, degrees):
    radius, sigma = AUTHORS["motion_blur"][severity - 1]
    rng = SimpleNamespace(uniform=lambda low, high: degrees)
    angle = np.deg2rad(degrees)
    padded = np.pad(picture().astype(float), ((40, 40), (40, 40), (0, 0)), mode="edge")
    total, weights = 0, 0
    for step in range(2 * radius + 1):
        weight = np.exp(-(step**2) / (2 * sigma**2))
        right, down = (int(np.ceil(step * f(angle) - 0.5)) for f in (np.cos, np.sin))
        total = total + weight * padded[40 + down : 72 + down, 40 + right : 72 + right]
        weights += weight
    result = functions.motion_blur(picture(), rng, (radius, sigma))
    np.testing.assert_allclose(result, total / weights, atol=0.51)


@pytest.mark.parametrize("severity", range(1, 6))
def test_zoom_blur_averages_zoomed_images(severity):
    image, zooms = picture() / 255, np.arange(1, AUTHORS["zoom_blur"][severity - 1], 0.01)
    total = image.copy()
    for zoom in zooms:
        part = int(np.ceil(32 / zoom))
        top = (32 - part) // 2
        large = ndimage.zoom(image[top : top + part, top : top + part], (zoom, zoom, 1), order=1)
        cut = (len(large) - 32) // 2
        total += large[cut : cut + 32, cut : cut + 32]
    result = functions.zoom_blur(picture(), RNG(0), AUTHORS["zoom_blur"][severity - 1])
    np.testing.assert_allclose(result, total / (len(zooms) + 1), atol=1e-5)


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_and_contrast(severity):
    image, shift = picture() / 255, AUTHORS["brightness"][severity - 1]
    hue, saturation, value = np.moveaxis(rgb_to_hsv(image), 2, 0)
    result = rgb_to_hsv(functions.brightness(picture(), RNG(0), shift))
    expected = np.stack([hue, saturation, (value + shift).clip(max=1)], axis=2)
    np.testing.assert_allclose(result, expected, atol=1e-9)
    black = np.zeros((4, 4, 3), np.uint8)
    np.testing.assert_allclose(functions.brightness(black, RNG(0), shift), shift)
    factor = AUTHORS["contrast"][severity - 1]
    result = functions.contrast(picture(), RNG(0), factor)
    np.testing.assert_allclose(result.mean((0, 1)), image.mean((0, 1)))
    np.testing.assert_allclose(result.std((0, 1)), factor * image.std((0, 1)))


@pytest.mark.parametrize("severity", range(1, 6))
def test_weather_on_a_black_image_is_the_layer_alone(severity):
    black = np.zeros((32, 32, 3), np.uint8)
    kept, share = AUTHORS["synthetic_frost"][severity - 1]
    layers = [functions.synthetic_frost(black, RNG(i), (kept, share)) for i in range(300)]
    colours = [(78, 149, 165), (198, 203, 212), (198, 203, 212), (143, 158, 171), (102, 114, 126)]
    expected = share * np.mean(colours, axis=0) / 255
    np.testing.assert_allclose(np.mean(layers, axis=(0, 1, 2)), expected, rtol=0.06)
    white = functions.fog(black + 255, RNG(0), AUTHORS["fog"][severity - 1])
    strength = AUTHORS["fog"][severity - 1][0]
    assert white.min() == pytest.approx(1 / (1 + strength))
    assert white.max() == pytest.approx(1)
    kept = AUTHORS["snow"][severity - 1][-1]
    snowy = functions.snow(black, RNG(0), AUTHORS["snow"][severity - 1])
    assert snowy.min() == pytest.approx((1 - kept) * 0.5, abs=1e-6)
    assert snowy.max() > 2 * snowy.min()
    # the flakes are added twice, the second time turned by 180 degrees
    np.testing.assert_allclose(snowy, np.rot90(snowy, 2), atol=1e-6)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("side", [32, 45])
def test_fog_is_diamonds_and_squares(severity, side):
    """One point at a time: the mean of its four neighbours, and a draw."""
    strength, decay = AUTHORS["fog"][severity - 1]
    rng, whole = RNG(3), 32 if side == 32 else 64
    heights, rough, step = np.zeros((whole, whole)), 100.0, whole
    while step > 1:
        half = step // 2
        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for top, left, around in ((half, half, diagonal), (0, half, straight), (half, 0, straight)):
            for y in range(top, whole, step):
                for x in range(left, whole, step):
                    near = [heights[(y + dy) % whole, (x + dx) % whole] for dy, dx in around]
                    heights[y, x] = sum(near) / 4 + rough * rng.uniform(-rough, rough)
        step, rough = half, rough / decay
    heights = (heights - heights.min()) / np.ptp(heights)
    image = picture(side) / 255
    foggy = image + strength * heights[:side, :side, None]
    expected = foggy * image.max() / (image.max() + strength)
    result = functions.fog(picture(side), RNG(3), (strength, decay))
    np.testing.assert_allclose(result, expected, atol=1e-9)


@pytest.mark.parametrize("severity", range(1, 6))
def test_elastic_transform_is_an_affine_map_then_a_smooth_displacement(severity):
    lengths = AUTHORS["elastic_transform"][severity - 1]
    strength, smoothing, reach = (32 * length for length in lengths)
    rng, image = RNG(5), picture() / 255
    corners = 16 + 10 * np.array([[1, 1], [1, -1], [-1, -1]])  # x, y
    moved = corners + rng.uniform(-reach, reach, (3, 2))
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # from moved to corners
    y, x = np.mgrid[:32, :32]
    from_x, from_y = np.moveaxis(np.stack([x, y, np.ones((32, 32))], axis=2) @ back, 2, 0)
    across, down = (
        strength * ndimage.gaussian_filter(field, smoothing, truncate=3)
        for field in rng.uniform(-1, 1, (2, 32, 32))
    )
    result = functions.elastic_transform(picture(), RNG(5), lengths)
    at, bent_at = (from_y, from_x), (y + down, x + across)
    for channel in range(3):
        mapped = ndimage.map_coordinates(image[..., channel], at, order=1, mode="mirror")
        bent = ndimage.map_coordinates(mapped, bent_at, order=1, mode="reflect")
        # OpenCV rounds positions to 1/32 of a pixel
        np.testing.assert_allclose(result[..., channel], bent, atol=0.02)


@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_shrinks_and_enlarges_by_boxes(severity):
    side = int(32 * AUTHORS["pixelate"][severity - 1])
    small = Image.fromarray(picture()).resize((side, side), Image.Resampling.BOX)
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    result = functions.pixelate(picture(), RNG(0), AUTHORS["pixelate"][severity - 1])
    np.testing.assert_array_equal(result, expected)
