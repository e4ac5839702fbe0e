"""CIFAR-10, CIFAR-100 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cifarnet.core.errors import UserError
from cifarnet.core.files import exclusive, exists
from cifarnet.core.late import LateModule
from cifarnet.images.download import fetch, unpack
from cifarnet.images.finding import Say
from cifarnet.images.imageset import Dataset, ImageSet, resized
from cifarnet.images.parts import holds_classes
from cifarnet.settings.data import DataSettings

datasets = LateModule("torchvision.datasets")  # takes longer to import than all the rest

# Channel means and standard deviations of the 50,000 training images, in [0, 1].
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# github.com/weiaicunzai/pytorch-cifar100, conf/global_settings.py, rounded
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Cifar(NamedTuple):
    """One of the two data sets. torchvision knows its addresses, checksums and class names."""

    title: str
    megabytes: int  # of the download
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    official_name: str  # the class in torchvision.datasets

    @property
    def official(self) -> type:
        return getattr(datasets, self.official_name)


CIFAR = {  # by --dataset
    "cifar10": Cifar("CIFAR-10", 170, CIFAR10_MEAN, CIFAR10_STD, "CIFAR10"),
    "cifar100": Cifar("CIFAR-100", 169, CIFAR100_MEAN, CIFAR100_STD, "CIFAR100"),
}


def read_cifar(settings: DataSettings, say: Say, classes: tuple[str, ...] = ()) -> Dataset:
    """Reads --dataset from --data_dir, after downloading what is missing or damaged.

    The labels of CIFAR-100 are the hundred fine ones. torchvision verifies the checksum of each
    file before it reads it. Raises `UserError` if the images cannot be read or downloaded.
    """
    which, root = CIFAR[settings.dataset], Path(settings.data_dir)
    official = which.official
    try:
        if root.exists() and not root.is_dir():
            raise UserError(f"--data_dir {root} is a file; name a directory")
        if not is_at_hand(which, root) and holds_classes(root):
            raise UserError(
                f"--data_dir {root} holds folders of images; add --dataset folder, or name another "
                f"folder for {which.title}"
            )
        try:
            parts = _read(official, root)
        except RuntimeError:  # missing, or a checksum does not match
            if not (root / official.filename).exists():
                say(f"downloading {which.title} ({which.megabytes} MB) to {root}")
            root.mkdir(parents=True, exist_ok=True)
            with exclusive(root, "--data_dir"):
                url = settings.data_url or official.url
                fetch(url, root / official.filename, official.tgz_md5, say)
                unpack(root / official.filename, root, official.base_folder)
            parts = _read(official, root)
    except (OSError, RuntimeError) as problem:
        raise UserError(
            f"cannot get {which.title} into {root} ({problem}); run again to continue, give "
            f"another --data_url, put {official.filename} from {official.url} there by hand, or "
            "use --dataset digits, which needs no download"
        ) from None
    train, test = (_image_set(part, settings.image_size) for part in parts)
    return Dataset(which.title, train, None, test, (which.mean, which.std))


def is_at_hand(which: Cifar, root: Path) -> bool:
    """Whether the folder `root` holds the data set, or its archive. Raises `UserError` where that
    cannot be seen."""
    names = which.official.base_folder, which.official.filename
    return any(exists(root / name, follow=True) for name in names)


def _read(official: type, root: Path) -> list[Any]:
    """The training and the test part, as torchvision reads them."""
    with warnings.catch_warnings(action="ignore"):  # numpy 2.4 warns of pickles this old
        return [official(root, train=train) for train in (True, False)]


def _image_set(part: Any, size: int) -> ImageSet:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(resized(images, size), torch.tensor(part.targets), tuple(part.classes))
