"""CIFAR-10."""

from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import datasets

from cifarnet.core.errors import UserError
from cifarnet.core.files import exclusive
from cifarnet.images.download import fetch, unpack
from cifarnet.images.imageset import ImageSet
from cifarnet.images.pictures import _one_line

# Channel means and standard deviations of CIFAR-10's official training images, in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def _read_cifar10(
    root: Path, url: str | None, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
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
