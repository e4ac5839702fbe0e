"""Finding, fetching, checking and reading images: every data set becomes uint8 arrays in memory, once."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets
from tqdm import tqdm

from cifarnet.core.files import exclusive, remove_leftovers, write_atomically
from cifarnet.core.settings import TrainConfig, UserError, printable
from cifarnet.images.download import fetch, unpack

SIZE = 32  # pixels: height and width of every image
SPLIT_SEED = 20250  # of all splits and parts: fixed, so that runs with other seeds see the same images
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))
NO_IMAGES = f"as no images by their names ({SUFFIXES})"
CACHE_NAME = ".cifarnet_32x32.npz"

# Channel means and standard deviations of CIFAR-10's official training images, in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N,3,32,32], their labels int64 [N], and the names that the labels count."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "ImageSet":
        """The images at the indices `chosen`, in that order, or where `chosen` is a mask, those that it is true for."""
        where = torch.from_numpy(chosen)
        return ImageSet(self.images[where], self.labels[where], self.classes)


@dataclass(frozen=True)
class Splits:
    """What a run trains on, selects by and reports on, and the channel statistics to normalise with, in [0, 1]."""

    name: str
    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def has_statistics(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether the channel statistics are these, but for rounding: what tells one folder's images from another's."""
        return np.allclose([*self.mean, *self.std], [*mean, *std], rtol=1e-6, atol=0)


def load_splits(config: TrainConfig, say: Callable[[str], None]) -> Splits:
    """Reads the data set that `config` names, fetching it first where that is possible.

    `say` is told once about what the user should know. Raises `UserError` for anything that keeps the images
    from being read, or that does not fit together.
    """
    if config.dataset == "cifar10":
        train, test = _read_cifar10(Path(config.data_dir), config.data_url, say)
    elif config.dataset == "folder":
        train, test = _read_folder(Path(config.data_dir), config.skip_bad_images, say)
    else:
        train, test = _read_digits()
    train = limited(train, config.limit_train, "--limit_train")
    test = limited(test, config.limit_test, "--limit_test")
    train, val = hold_back(train, config.val_fraction)
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if config.dataset == "cifar10" else channel_statistics(train.images)
    own_names = {"cifar10": "CIFAR-10", "digits": "digits", "folder": Path(config.data_dir).resolve().name}
    name = printable(config.dataset_name or own_names[config.dataset])
    return Splits(name, train, val, test, mean, std)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [N,3,H,W], in [0, 1]; no deviation is 0."""
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()  # [3,256]
    share = counts / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _rank_in_class(labels: Tensor) -> np.ndarray:
    """For each image its place, int64 [N], in a fixed random order of the images of its class."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    sizes = np.bincount(labels.numpy())
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.concatenate([np.arange(size) for size in sizes])
    return ranks


def limited(images: ImageSet, limit: int, flag: str) -> ImageSet:
    """A fixed part of `limit` images, balanced over the classes as far as each reaches; all for 0.

    Raises `UserError`, which names `flag`, for fewer images than classes.
    """
    if limit == 0 or limit >= len(images):
        return images
    if limit < len(images.classes):
        raise UserError(f"{flag} {limit} is fewer than the {len(images.classes)} classes; take one image each at least")
    order = np.lexsort((images.labels.numpy(), _rank_in_class(images.labels)))
    return images.take(np.sort(order[:limit]))


def hold_back(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet | None]:
    """(the rest, `fraction` of each class, rounded down); (all, None) for 0. Raises `UserError` where that is none."""
    if fraction == 0:
        return images, None
    sizes = np.bincount(images.labels.numpy(), minlength=len(images.classes))
    held = _rank_in_class(images.labels) < np.floor(fraction * sizes + 1e-9)[images.labels.numpy()]
    if not held.any() or held.all():
        what = "no image" if not held.any() else "every image"
        raise UserError(f"--val_fraction {fraction:g} holds back {what} of classes this small; choose another")
    return images.take(~held), images.take(held)


# --- digits ---------------------------------------------------------------------------------------------------


def _read_digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1,797 handwritten digits, 8x8 with values 0 to 16, as 32x32 RGB; a fifth is for testing."""
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float().mul_(255 / 16)[:, None]  # [N,1,8,8]
    grey = torch.nn.functional.interpolate(grey, (SIZE, SIZE), mode="bilinear").round().to(torch.uint8)
    images = grey.expand(-1, 3, -1, -1).contiguous()
    digits = ImageSet(images, torch.from_numpy(bunch.target).long(), tuple(str(d) for d in range(10)))
    train, test = hold_back(digits, 0.2)
    return train, test


# --- CIFAR-10 -------------------------------------------------------------------------------------------------


def _read_cifar10(root: Path, url: str | None, say: Callable[[str], None]) -> tuple[ImageSet, ImageSet]:
    """torchvision's CIFAR-10 under `root`, downloaded (from `url`, if given) and verified where it is not there yet.

    Each file's checksum is verified by torchvision before it is read.
    """
    official = datasets.CIFAR10
    try:
        if root.exists() and not root.is_dir():
            raise UserError(f"--data_dir {root} is a file; name a directory")
        try:
            parts = [official(root, train=train) for train in (True, False)]
        except RuntimeError:  # not there, or its checksums do not match
            if not (root / official.filename).exists():
                say(f"downloading CIFAR-10 (170 MB) to {root}")
            root.mkdir(parents=True, exist_ok=True)
            with exclusive(root, "--data_dir"):
                fetch(url or official.url, root / official.filename, official.tgz_md5, say)
                unpack(root / official.filename, root, official.base_folder)
            parts = [official(root, train=train) for train in (True, False)]
    except (OSError, RuntimeError) as problem:
        raise UserError(
            f"cannot get CIFAR-10 into {root} ({_one_line(problem)}); run again to go on, name another address with "
            f"--data_url, put {official.filename} from {official.url} there by hand, or try --dataset digits, which "
            f"needs no network"
        ) from None
    sets = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        sets.append(ImageSet(images, torch.tensor(part.targets), tuple(part.classes)))
    return sets[0], sets[1]


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


# --- folders --------------------------------------------------------------------------------------------------


def _read_folder(root: Path, skip_bad: bool, say: Callable[[str], None]) -> tuple[ImageSet, ImageSet]:
    """`root`/train/<class>/* and `root`/test/<class>/*, decoded once and kept beside them in one file.

    With `skip_bad` what cannot be read is left out, and told.
    """
    try:
        classes, files = _list_folder(root, say)
        listing = [[str(path.relative_to(root)), *_stamp(path)] for path, _, _ in files]
        remove_leftovers(root)
    except OSError as problem:
        raise UserError(f"cannot read {problem.filename} ({problem.strerror}); repair or remove it") from None
    fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    cache = root / CACHE_NAME
    images, missing = _load_decoded(cache, fingerprint, len(files))
    problems = _decode_missing(images, missing, [path for path, _, _ in files], skip_bad, say)
    bad = np.fromiter(problems, np.int64)
    if len(bad) < len(missing):
        arrays = {"fingerprint": np.array(fingerprint), "images": images, "bad": bad}
        try:
            write_atomically(cache, lambda file: np.savez(file, **arrays))
        except OSError as problem:
            say(f"decoded images are kept in memory only: {cache} cannot be written ({problem.strerror})")
    for problem in problems.values():
        say(f"skipped: {problem}")
    pixels = torch.from_numpy(images)
    labels = torch.tensor([label for _, _, label in files])
    is_test = np.array([split == "test" for _, split, _ in files])
    good = np.ones(len(files), dtype=bool)
    good[bad] = False
    both = ImageSet(pixels, labels, classes)
    train, test = both.take(~is_test & good), both.take(is_test & good)
    left = train.labels.bincount(minlength=len(classes))
    if not left.all() or not len(test):
        which = root / "train" / classes[int(left.argmin())] if not left.all() else root / "test"
        raise UserError(f"no image in {which} can be read; repair them")
    in_test = test.labels.bincount(minlength=len(classes))
    absent = [name for name, count in zip(classes, in_test, strict=True) if not count]
    if absent:
        say(f"warning: {root / 'test'} lacks {', '.join(absent)}; their figures, and their part in averages, will be 0")
    return train, test


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; zeros for a broken link, which decoding will name."""
    if not path.exists():
        return 0, 0
    return path.stat().st_size, path.stat().st_mtime_ns


def _list_folder(root: Path, say: Callable[[str], None]) -> tuple[tuple[str, ...], list[tuple[Path, str, int]]]:
    """The classes, and (path, "train" or "test", label) of every image, in a fixed order.

    Raises `UserError` for what is missing, empty or does not fit together.
    """
    if not root.is_dir():
        raise UserError(f"--data_dir {root} {'is a file' if root.exists() else 'is not there'}; name a directory")
    classes: tuple[str, ...] = ()
    files, loose, others = [], [], []
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(f"{root / split} is not there; --dataset folder reads train/<class>/* and test/<class>/*")
        there = _visible(root / split)
        found = [path.name for path in there if path.is_dir()]
        if split == "train":
            classes = tuple(found)
            if len(classes) < 2:
                raise UserError(f"{root / split} has {len(classes)} class folders; two are needed at least")
        broken = [name for name in found if not name.isprintable()]
        if broken:
            raise UserError(f"{root / split} has a class whose name cannot be printed: {broken[0]!r}; rename it")
        strange = sorted(set(found) - set(classes))
        if strange or not found:
            what = f"has the class {strange[0]!r}, which train lacks" if strange else "has no class folders"
            raise UserError(f"{root / split} {what}; rename or remove it, or add what is missing")
        loose += [p for p in there if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
        for name in found:
            inside = _visible(root / split / name)
            paths = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            if not paths:
                raise UserError(f"{root / split / name} holds no images ({SUFFIXES})")
            files += [(path, split, classes.index(name)) for path in paths]
            others += [p for p in inside if p.suffix.lower() not in IMAGE_SUFFIXES]
    for paths, why in ((loose, "as in no class's folder"), (others, NO_IMAGES)):
        if paths:
            say(left_out(paths, why))
    return classes, files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def left_out(paths: Sequence[Path], why: str) -> str:
    """The warning that `paths`, at least one, are not used, and `why`."""
    return f"warning: left out {why}: {len(paths)}, such as {printable(str(paths[0]))}"


def _load_decoded(cache: Path, fingerprint: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N,3,32,32], of which those at the indices int64 are still to be decoded, having been unreadable:
    all `count`, where the cache is missing, damaged or of another tree."""
    with contextlib.suppress(Exception):  # a damaged archive can raise anything
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) == fingerprint:
                images = kept["images"]
                if images.shape == (count, 3, SIZE, SIZE) and images.dtype == np.uint8:
                    return images, kept["bad"]
    return np.zeros((count, 3, SIZE, SIZE), dtype=np.uint8), np.arange(count)


def _decode_missing(
    images: np.ndarray, missing: np.ndarray, paths: list[Path], skip_bad: bool, say: Callable[[str], None]
) -> dict[int, UserError]:
    """Decodes the `images` at the indices `missing`, in place; returns why which of them cannot be read.

    Raises the first such `UserError`, unless `skip_bad`.
    """
    resized, problems = 0, {}
    with contextlib.closing(read_images([paths[i] for i in missing])) as decoded:
        shown = tqdm(decoded, "decoding", len(missing), leave=False, disable=None)
        for i, outcome in zip(missing.tolist(), shown, strict=True):
            if isinstance(outcome, UserError):
                if not skip_bad:
                    raise outcome
                problems[i] = outcome
            else:
                images[i], original_size = outcome
                resized += original_size != (SIZE, SIZE)
    if resized:
        say(f"resized {resized} of {len(missing)} images to {SIZE}x{SIZE}")
    return problems


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Without warnings of tags and profiles that play no part here. For one thread at a time: the filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_images(paths: Iterable[Path]) -> Iterator[tuple[np.ndarray, tuple[int, int]] | UserError]:
    """What `read_image` returns, or raises, for each of `paths`, in order, by several threads. Close it if it is left
    before its end."""

    def attempt(path: Path) -> tuple[np.ndarray, tuple[int, int]] | UserError:
        try:
            return _decode(path)
        except UserError as problem:
            return problem

    with _no_warnings(), ThreadPoolExecutor() as pool:
        try:
            yield from pool.map(attempt, paths)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_image(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """An image file as `to_pixels` makes it, and its own (width, height). Raises `UserError` for an unreadable one."""
    with _no_warnings():
        return _decode(path)


def _decode(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("not a file, or a broken link")
        with Image.open(path) as image:
            return to_pixels(image), image.size
    except Exception as problem:  # a damaged file can raise anything
        raise UserError(f"cannot read the image {path} ({_one_line(problem)}); repair or remove it") from None


def to_pixels(image: Image.Image) -> np.ndarray:
    """A picture of any size and mode as uint8 [3,32,32], as the network is to see it; of an animation, its frame.

    Its exif rotation is respected, 16-bit grey is scaled to 8 bits, what is transparent becomes black, and
    another size is resized without regard to its proportions. Raises `UserError` for pixels that are floats.
    """
    if image.mode == "F":
        raise UserError("its pixels are floats, for which there is no agreed range; save it with 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=3)
    return np.array(image).transpose(2, 0, 1)  # a copy: torch wants arrays that can be written to
