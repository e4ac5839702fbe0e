"""Image folders read as a run reads them, images of one colour, and empty files."""

from pathlib import Path

import torch
from PIL import Image

from cifarnet.images.folder import read_folder
from cifarnet.images.imageset import Dataset, ImageSet
from cifarnet.settings.data import DataSettings


def read_all(root, messages=None, **settings) -> Dataset:
    chosen = DataSettings(dataset="folder", data_dir=str(root), **settings)
    return read_folder(chosen, (messages if messages is not None else []).append)


def read(root, skip_bad=False, messages=None, **settings) -> tuple[ImageSet, ImageSet]:
    """The training and the test images."""
    dataset = read_all(root, messages, skip_bad_images=skip_bad, **settings)
    assert dataset.val is None
    return dataset.train, dataset.test


def save_red(path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(path)


def is_red(image: torch.Tensor) -> bool:
    return image[:, 0, 0].tolist() == [255, 0, 0]


def touch(root: Path, *names: str) -> None:
    """Makes empty files in `root`, with the folders that they lie in."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
