"""From an `ImageSet` to what the network eats: shuffled, augmented by either engine, normalised on the device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.per_image import AlbumentationsEngine
from cifarnet.augment.policy import Draws, build_policy, draw
from cifarnet.core.device import Runtime
from cifarnet.core.errors import printable
from cifarnet.core.seeds import AUGMENTATION, ORDER, derived_seed
from cifarnet.core.settings import Settings
from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD, _read_cifar10
from cifarnet.images.digits import _read_digits
from cifarnet.images.folder import _read_folder
from cifarnet.images.imageset import ImageSet, Splits, channel_statistics, hold_back, limited
from cifarnet.images.normalise import Batch, Normalise


class TrainBatches:
    """The training images of any epoch, in batches of `config.batch_size`, the last one what is left; of each, this
    rank's share, which may be empty.

    Order and augmentation follow from (seed, epoch, position in the epoch's order) alone: neither the number
    of workers nor a resume changes what the network sees. `workers` processes augment; none where whole batches
    are augmented on the device.
    """

    def __init__(
        self,
        images: ImageSet,
        config: Settings,
        runtime: Runtime,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.count = len(images)
        self.device = runtime.device
        self.normalise = Normalise(mean, std, runtime.device)
        self.order = _EpochOrder(
            len(images), config.batch_size, config.seed, runtime.rank, runtime.world_size
        )
        engine = build_engine(config, mean, runtime.device)
        if isinstance(engine, BatchedEngine):
            self.workers = 0
            self.loader = _BatchesOnDevice(images, engine, self.order)
            return
        self.workers = min(4, runtime.threads) if config.num_workers is None else config.num_workers
        self.loader = DataLoader(
            _AugmentedBatches(images, engine, config.seed),
            batch_size=None,  # the data set hands out whole batches
            sampler=self.order,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=runtime.device.type == "cuda",
            generator=torch.Generator(),  # or each epoch would draw from the global one
        )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.order)

    def size(self, step: int) -> int:
        """Images in the batch of step `step`, from 0, over all ranks."""
        return min(self.order.batch_size, self.count - step * self.order.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch`, counted from 1."""
        self.order.epoch = epoch
        for images, labels in self.loader:
            yield self.normalise(images), labels.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Ends the workers, after the last epoch: their processor time then counts as this process's."""
        self.loader = None


class _EpochOrder(Sampler):
    """Yields, of batch by batch, a rank's share: (epoch, place of its first image in the epoch's order, image indices).

    Shares are contiguous, and their sizes differ by one image at most, so that they are empty only in a last batch of
    fewer images than ranks.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 1

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, ORDER))
        order = torch.randperm(self.count, generator=generator)
        for first in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - first)
            start, end = (
                first + size * rank // self.world_size for rank in (self.rank, self.rank + 1)
            )
            yield self.epoch, start, order[start:end]


class _AugmentedBatches(Dataset):
    """What a worker does: (epoch, place, indices) -> augmented uint8 images [B,3,32,32] and their labels."""

    def __init__(self, images: ImageSet, engine: AlbumentationsEngine, seed: int) -> None:
        self.set, self.engine, self.seed = images, engine, seed

    def __getitem__(self, key: tuple[int, int, Tensor]) -> tuple[Tensor, Tensor]:
        epoch, first, chosen = key
        augmented = self.engine(
            self.set.images[chosen].numpy(), self.seed, epoch, AUGMENTATION, first
        )
        return torch.from_numpy(augmented), self.set.labels[chosen]


class _BatchesOnDevice:
    """The batches of the epoch that `order` is set to: uint8 images [B,3,32,32] and labels, on the device from the
    whole data set, which is kept there (150 MB for 50,000 images)."""

    def __init__(self, images: ImageSet, engine: BatchedEngine, order: _EpochOrder) -> None:
        self.images, self.labels = images.images.to(engine.device), images.labels.to(engine.device)
        self.engine, self.order = engine, order
        self.ahead = max(
            1, engine.block * order.world_size // order.batch_size
        )  # batches augmented together

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order
        draws = draw(self.engine.policy, len(self.images), order.seed, order.epoch, AUGMENTATION)
        batches = list(order)
        for start in range(0, len(batches), self.ahead):
            group = batches[start : start + self.ahead]
            chosen = torch.cat([indices for _, _, indices in group]).to(
                self.engine.device, non_blocking=True
            )
            images = self.images.index_select(0, chosen)
            if len(chosen):
                drawn = [draws.part(first, first + len(indices)) for _, first, indices in group]
                images = self.engine.apply(images, Draws(*map(torch.cat, zip(*drawn, strict=True))))
            sizes = [len(indices) for _, _, indices in group]
            yield from zip(images.split(sizes), self.labels[chosen].split(sizes), strict=True)


class EvalBatches:
    """All images of a set, once, in order and unchanged but for the normalisation; iterable any number of times.

    Of several ranks each has some of the batches, whole, so that an image is evaluated in the company that it would
    have on one: the first rank the first ones, and so on.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        runtime: Runtime,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.set, self.batch_size, self.device = images, batch_size, runtime.device
        self.normalise = Normalise(mean, std, runtime.device)
        count = -(-len(images) // batch_size)
        self.chosen = slice(
            *(count * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
        )
        self.rounds = -(-count // runtime.world_size)  # batches of the rank that has most

    def __iter__(self) -> Iterator[Batch]:
        parts = (self.set.images.split(self.batch_size), self.set.labels.split(self.batch_size))
        for images, labels in zip(*(part[self.chosen] for part in parts), strict=True):
            yield self.normalise(images), labels.to(self.device)


def load_splits(config: Settings, say: Callable[[str], None]) -> Splits:
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
    mean, std = (
        (CIFAR10_MEAN, CIFAR10_STD)
        if config.dataset == "cifar10"
        else channel_statistics(train.images)
    )
    own_names = {
        "cifar10": "CIFAR-10",
        "digits": "digits",
        "folder": Path(config.data_dir).resolve().name,
    }
    name = printable(config.dataset_name or own_names[config.dataset])
    return Splits(name, train, val, test, mean, std)


def build_engine(
    config: Settings, mean: tuple[float, float, float], device: torch.device
) -> AlbumentationsEngine | BatchedEngine:
    """The engine that --augment_engine names, with the policy that --augment names."""
    single = {"affine_p": config.affine_p, "jitter_p": config.jitter_p, "hole_p": config.hole_p}
    policy = build_policy(config.augment, config.augment_p, **single)
    if config.augment_engine == "batched":
        return BatchedEngine(policy, mean, device)
    return AlbumentationsEngine(policy, mean)
