"""How each corruption changes one image: `function(image, rng, constants)`.

The image is uint8 [S,S,3]. The result is uint8 [S,S,3] too, or floats where 1 is white. `rng` stays
unused where nothing is random. The formulas are those of make_cifar_c.py: see corruptions.py.
"""

import functools
import io
import math

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

# Mean colour and standard deviation of grey, in [0, 255], of the five photographs of frost that
# make_cifar_c.py draws from (the second and third are equal), at a fifth of their size.
FROSTS = (
    *(((78, 149, 165), 14), ((198, 203, 212), 18), ((198, 203, 212), 18)),
    *(((143, 158, 171), 26), ((102, 114, 126), 35)),
)
FROST_SLOPE = -1.2  # of their power spectrum: power is proportional to frequency ** slope
FROST_SHIFT = 11  # standard deviation of the mean grey of their crops


# --- noise ---


def gaussian_noise(image: np.ndarray, rng: Generator, scale: float) -> np.ndarray:
    """Adds normal noise."""
    return image / 255 + rng.normal(scale=scale, size=image.shape)


def shot_noise(image: np.ndarray, rng: Generator, photons: float) -> np.ndarray:
    """Draws Poisson counts; white has `photons` on average."""
    return rng.poisson(image / 255 * photons) / photons


def impulse_noise(image: np.ndarray, rng: Generator, share: float) -> np.ndarray:
    """Sets a `share` of the values to black or white."""
    hit = rng.random(image.shape) <= share
    return np.where(hit, np.where(rng.random(image.shape) <= 0.5, 255, 0), image).astype(np.uint8)


# --- blur ---


def defocus_blur(image: np.ndarray, rng: Generator, disk: tuple[float, float]) -> np.ndarray:
    """Averages over a disk; `disk` is its radius and the softness of its edge."""
    return cv2.filter2D(image / 255, -1, _disk(*disk))


@functools.cache
def _disk(radius: float, smoothing: float) -> np.ndarray:
    offsets = np.arange(-8, 9)
    inside = offsets[:, None] ** 2 + offsets**2 <= radius**2
    return cv2.GaussianBlur((inside / inside.sum()).astype(np.float32), (3, 3), smoothing)


def glass_blur(image: np.ndarray, rng: Generator, blur: tuple[float, int]) -> np.ndarray:
    """Replaces pixels by neighbours above and to the left, between two blurs.

    `blur` is sigma and the number of rounds. make_cifar_c.py means to swap pixels, at a distance of
    1, but numpy's views make each swap a copy.
    """
    sigma, rounds = blur
    pixels = (_gaussian(image / 255, sigma) * 255).astype(np.uint8)
    inner = np.arange(2, len(image))
    for _ in range(rounds):
        down, right = rng.integers(-1, 1, size=(2, len(inner), len(inner)))
        pixels[2:, 2:] = pixels[inner[:, None] + down, inner + right]
    return _gaussian(pixels / 255, sigma)


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """As scikit-image's `gaussian` by default."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def motion_blur(image: np.ndarray, rng: Generator, line: tuple[int, float]) -> np.ndarray:
    """Averages along a line near the horizontal; `line` is its radius and sigma."""
    return _blurred_along(image, *line, rng.uniform(-45, 45))


def _blurred_along(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Half a Gaussian from each pixel in the direction of `angle`, in degrees.

    As ImageMagick's MotionBlurImage (MagickCore/effect.c).
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    direction = np.deg2rad(angle)
    right, down = (
        np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(direction), np.sin(direction))
    )
    reach = 2 * radius
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (reach + down, reach + right), weights / weights.sum())  # steps may coincide
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def zoom_blur(image: np.ndarray, rng: Generator, furthest: float) -> np.ndarray:
    """Averages over zooms in steps of 0.01 to `furthest`, and the image."""
    pixels = (image / 255).astype(np.float32).transpose(2, 0, 1)
    zooms = np.arange(1, furthest, 0.01).tolist()
    total = pixels.copy()
    for zoom in zooms:
        matrix = _zoom_matrix(len(image), zoom)
        total += matrix @ pixels @ matrix.T
    return (total / (len(zooms) + 1)).transpose(1, 2, 0)


@functools.cache
def _zoom_matrix(side: int, zoom: float) -> np.ndarray:
    """Enlarges the middle of a column of `side` values to `side` values: float32 [side,side]."""
    part = math.ceil(side / zoom)
    top = (side - part) // 2
    rows = np.eye(side, dtype=np.float32)[top : top + part]
    enlarged = ndimage.zoom(rows, (zoom, 1), order=1)
    cut = (len(enlarged) - side) // 2
    return enlarged[cut : cut + side]


# --- weather ---


def snow(image: np.ndarray, rng: Generator, constants: tuple[float, ...]) -> np.ndarray:
    """Adds flakes that fall at an angle, and lightens the image."""
    mean, scale, zoom, least, radius, sigma, kept = constants
    side = len(image)
    matrix = _zoom_matrix(side, zoom)
    flakes = matrix @ rng.normal(mean, scale, size=(side, side)) @ matrix.T
    flakes = (np.where(flakes < least, 0, flakes).clip(0, 1) * 255).astype(np.uint8)
    flakes = _blurred_along(flakes, radius, sigma, rng.uniform(-135, -45))[..., None] / 255
    pixels = (image / 255).astype(np.float32)
    light = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 0.5
    pixels = kept * pixels + (1 - kept) * np.maximum(pixels, light)
    return pixels + flakes + np.rot90(flakes, 2)


def synthetic_frost(image: np.ndarray, rng: Generator, shares: tuple[float, float]) -> np.ndarray:
    """Mixes the image with noise like frost; `shares` are those of the image and of the frost."""
    kept, frost = shares
    side = len(image)
    colour, scale = FROSTS[rng.integers(len(FROSTS))]
    noise = np.fft.rfft2(rng.normal(size=(side, side))) * _frost_filter(side)
    noise = np.fft.irfft2(noise, (side, side))
    grey = scale * noise / noise.std() + rng.normal(scale=FROST_SHIFT)
    return (kept * image + frost * (grey[..., None] + colour).clip(0, 255)) / 255


@functools.cache
def _frost_filter(side: int) -> np.ndarray:
    """Amplitude by frequency, of `numpy.fft.rfft2`; none at frequency 0."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    return frequency ** (FROST_SLOPE / 2)


def fog(image: np.ndarray, rng: Generator, clouds: tuple[float, float]) -> np.ndarray:
    """Adds clouds, and scales back to the image's highest value.

    `clouds` is their strength, and the decay of `_plasma`.
    """
    strength, decay = clouds
    side = len(image)
    heights = _plasma(1 << (side - 1).bit_length(), decay, rng)[:side, :side, None]
    highest = image.max() / 255
    return (image / 255 + strength * heights) * highest / (highest + strength)


def _plasma(side: int, decay: float, rng: Generator) -> np.ndarray:
    """Heights in [0, 1] by the diamond-square algorithm, with edges that wrap around.

    `side` is a power of two. Each round divides the roughness by `decay`. As in make_cifar_c.py,
    the roughness counts twice: as the range of the draws and as their factor.
    """
    heights = np.zeros((side, side))
    rough, step = 100.0, side

    def varied(total: np.ndarray) -> np.ndarray:
        return total / 4 + rough * rng.uniform(-rough, rough, total.shape)

    while step > 1:
        low, middle = slice(0, None, step), slice(step // 2, None, step)
        corners = heights[low, low]
        above = corners + np.roll(corners, -1, axis=0)
        beside = corners + np.roll(corners, -1, axis=1)
        centers = varied(above + np.roll(above, -1, axis=1))
        heights[middle, middle] = centers
        heights[low, middle] = varied(beside + centers + np.roll(centers, 1, axis=0))
        heights[middle, low] = varied(above + centers + np.roll(centers, 1, axis=1))
        step, rough = step // 2, rough / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(image: np.ndarray, rng: Generator, shift: float) -> np.ndarray:
    """Raises the value V of HSV by `shift`: hue and saturation stay."""
    value = image.max(axis=2, keepdims=True) / 255
    brighter = np.minimum(value + shift, 1)
    return np.where(value > 0, image / 255 * brighter / np.maximum(value, 1 / 255), brighter)


# --- digital ---


def contrast(image: np.ndarray, rng: Generator, factor: float) -> np.ndarray:
    """Moves each channel towards its mean."""
    pixels = image / 255
    means = pixels.mean(axis=(0, 1))
    return (pixels - means) * factor + means


def elastic_transform(
    image: np.ndarray, rng: Generator, lengths: tuple[float, float, float]
) -> np.ndarray:
    """Applies a random affine map, then a smooth random displacement.

    `lengths` are the displacement, its smoothness and the reach of the map, as shares of the side.
    """
    strength, smoothing, reach = lengths
    side = len(image)
    pixels = (image / 255).astype(np.float32)
    corners = side // 2 + side // 3 * np.float32([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-reach * side, reach * side, (3, 2)).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    pixels = cv2.warpAffine(pixels, affine, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    across, down = (
        strength * side * ndimage.gaussian_filter(field, smoothing * side, truncate=3)
        for field in rng.uniform(-1, 1, (2, side, side))
    )
    at = np.arange(side)[:, None] + down, np.arange(side) + across
    channels = [
        ndimage.map_coordinates(pixels[..., channel], at, order=1, mode="reflect")
        for channel in range(3)
    ]
    return np.stack(channels, axis=2)


def pixelate(image: np.ndarray, rng: Generator, scale: float) -> np.ndarray:
    """Makes the image smaller, and enlarges its pixels."""
    side = len(image)
    small = Image.fromarray(image).resize((int(side * scale),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, rng: Generator | None, quality: int) -> np.ndarray:
    """Compresses as JPEG, and decompresses."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
