"""Settings of the images: which ones, where they lie, how they are split."""

from dataclasses import dataclass

from cifarnet.core.errors import UserError
from cifarnet.settings.flags import Group, flag

LARGEST_IMAGE = 128  # pixels


@dataclass(frozen=True)
class DataSettings(Group):
    """Which images to use, and how they are split."""

    # fmt: off
    dataset: str = flag("cifar10", choices=("cifar10", "cifar100", "folder", "digits"), help=
        "Which images to use. cifar10 and cifar100 are downloaded once; folder reads your own "
        "images from --data_dir; digits comes with scikit-learn.")
    data_dir: str = flag("./data", on_resume="any", help=
        "Folder of cifar10 or cifar100, downloaded if missing. With --dataset folder: contains a "
        "folder for each class, or train/ and test/ with a folder for each class.")
    labels: str | None = flag(None, unset="off", metavar="FILE", help=
        "With --dataset folder: take the images and their classes from this CSV file, not from "
        "class folders. Each line is path,label; paths are relative to the file or to --data_dir.")
    image_size: int = flag(32, within=f"[32, {LARGEST_IMAGE}]", help=
        "Side of all images in pixels, a multiple of 16. Images of other sizes are resized.")
    data_url: str | None = flag(None,
        "Download cifar10 or cifar100 from this address (http, https or file).",
        unset="the official server", metavar="URL", on_resume="any")
    dataset_name: str | None = flag(None,
        "Name of the data set in logs and reports.",
        unset="the name of the data set or its folder", metavar="NAME", on_resume="any")
    limit_train: int = flag(0, within="[0, inf)", help=
        "Use only this many training images, always the same ones, balanced over the classes. "
        "0: all.")
    limit_test: int = flag(0, within="[0, inf)", help=
        "Use only this many test images, always the same ones, balanced over the classes. 0: all.")
    val_fraction: float = flag(0.0, within="[0, 1)", help=
        "Hold out this share of the training images, stratified by class, for validation; "
        "the test set is then evaluated once, at the end. 0: hold out none and evaluate the test "
        "set every --eval_freq epochs.")
    test_fraction: float = flag(0.2, within="(0, 1]", help=
        "With --dataset folder: if there is no folder of test images, hold out this share of "
        "the images of each class to test on: the same ones until files are added or removed. 1, "
        "for evaluate.py only: all.")
    num_workers: int | None = flag(None,
        "Processes that augment images. 0: augment in the main process.",
        within="[0, 256]", unset="one per core, at most 4; on CUDA at most 16", on_resume="any")
    skip_bad_images: bool = flag(False,
        "With --dataset folder: skip images that cannot be read, and list them.")
    # fmt: on

    def check(self) -> None:
        if self.image_size % 16:
            raise UserError(
                f"--image_size {self.image_size} is not a multiple of 16; use 32, 48, 64, ... 128"
            )

    @property
    def is_folder(self) -> bool:
        """Whether the images are the user's own, in --data_dir."""
        return self.dataset == "folder"
