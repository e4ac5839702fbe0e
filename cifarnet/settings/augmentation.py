"""Settings of the augmentation: which steps, how likely, how far they go."""

from dataclasses import dataclass, fields

from cifarnet.core.errors import UserError
from cifarnet.settings.flags import Group, flag, numbers_in

# Defaults that follow from other flags.
PROBABILITIES = {"affine_p": 0.05, "hole_p": 0.05, "jitter_p": 0.1}  # docs/recipes.md
REPLACED = ("affine_p", "jitter_p")  # 0 beside --auto_augment, whose steps do the same
NO_CHANGE = ("augment_p", "augment_engine", "preview_augment")  # do not change what images show


@dataclass(frozen=True)
class AugmentationSettings(Group):
    """How training images are changed."""

    # fmt: off
    augment: str = flag("full", choices=("full", "light", "none"), help=
        "full: crop, flip, affine, hole and colour jitter. light: crop and flip. none: nothing.")
    flip_p: float = flag(0.5, within="[0, 1]", help=
        "Probability of mirroring an image left to right, in light and full. 0: no image.")
    augment_p: float | None = flag(None, within="[0, 1]", unset="see the three flags below", help=
        "Probability of each step that full adds to light: affine, hole and jitter.")
    affine_p: float | None = flag(None,
        "Probability of shift, scale and rotation, in full.",
        within="[0, 1]",
        unset=f"--augment_p, else {PROBABILITIES['affine_p']}, or 0 with --auto_augment")
    hole_p: float | None = flag(None,
        "Probability of the hole (Cutout), in full.",
        within="[0, 1]", unset=f"--augment_p, else {PROBABILITIES['hole_p']}")
    jitter_p: float | None = flag(None,
        "Probability of colour jitter, in full.",
        within="[0, 1]",
        unset=f"--augment_p, else {PROBABILITIES['jitter_p']}, or 0 with --auto_augment")
    pad: int = flag(4, within="[0, 16]", help=
        "Pad each side by this many pixels, then cut a random crop of the original size. Grows "
        "with --image_size, like --hole: 4 pixels of 32 are 8 pixels of 64.")
    shift: float = flag(0.0625, within="[0, 1)", help=
        "Largest shift along each axis, as a share of the image. Shifts are whole pixels.")
    scale: float = flag(0.1, within="[0, 1)", help=
        "Largest change of scale: 0.1 scales by 0.9 to 1.1.")
    degrees: float = flag(15.0, within="[0, 180]", help=
        "Largest rotation, either way, in degrees.")
    hole: int = flag(16, within="[1, 32]", help=
        "Height and width of the hole, in pixels. It has the mean colour of the data set.")
    jitter: str = flag("0.2,0.2,0.2,0.02", within="[0, 1)", numbers=(4,), metavar="B,C,S,H", help=
        "Largest change of brightness, contrast and saturation, as a share, and of hue, in turns "
        "of the colour wheel.")
    border: str = flag("mean", choices=("mean", "black"), help=
        "Colour of the pixels outside the image: the mean of the data set, or black.")
    auto_augment: str = flag("none",
        "Change each image by a published policy, after crop and flip and before the hole: "
        "AutoAugment (its policy for CIFAR-10), RandAugment or TrivialAugmentWide, as in "
        "torchvision. Affine and jitter are then off, unless their probabilities are set.",
        choices=("none", "autoaugment", "randaugment", "trivialaugment"))
    mixup: float = flag(0.0, within="[0, 100]", metavar="ALPHA", help=
        "Average the images of a batch in pairs, and their labels too. Their shares are drawn "
        "from Beta(ALPHA, ALPHA), once a batch. 0: off.")
    cutmix: float = flag(0.0, within="[0, 100]", metavar="ALPHA", help=
        "Paste a rectangle of one image of a batch into another, and mix the labels by area. "
        "The area is drawn from Beta(ALPHA, ALPHA), once a batch. With --mixup too, each batch "
        "draws one of the two. 0: off.")
    mix_p: float = flag(1.0, within="[0, 1]", help=
        "Probability that a batch is mixed by --mixup or --cutmix. With --accumulate or several "
        "processes, each part of a batch is mixed within itself.")
    augment_engine: str = flag("albumentations", choices=("albumentations", "batched"), help=
        "albumentations: one image at a time, in --num_workers processes. batched: the same "
        "policy on whole batches, on the device, without workers.")
    preview_augment: str | None = flag(None, unset="off", on_resume="any", help=
        "Draw images before and after augmentation, at --image_size, into this PNG file, then "
        "stop.")
    # fmt: on

    def check(self) -> None:
        if numbers_in(self.jitter)[3] > 0.5:
            raise UserError(f"--jitter {self.jitter}: hue moves by 0.5 turns at most; lower it")
        if self.auto_augment != "none" and self.augment_engine == "batched":
            raise UserError(
                f"--auto_augment {self.auto_augment} needs --augment_engine albumentations; remove "
                f"one of the two flags"
            )

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with one another."""
        return self.mix_p > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def augments(self) -> bool:
        """Whether training images are changed at all."""
        return self.augment != "none" or self.auto_augment != "none" or self.mixes

    @property
    def in_words(self) -> str:
        """The flags that say how images are changed: --augment, and those that differ from their
        defaults; then the probability of each step that --augment full adds."""
        words = []
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name == "augment" or (value != spec.default and spec.name not in NO_CHANGE):
                words.append(f"--no-{spec.name}" if value is False else f"--{spec.name} {value}")
        if self.augment == "full":
            likely = self.probabilities.items()
            words[0] += f" ({', '.join(f'{step} {p:g}' for step, p in likely)})"
        return ", ".join(words)

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each step that --augment full adds to light."""
        replaced = REPLACED if self.auto_augment != "none" else ()
        probabilities = {}
        for step, default in PROBABILITIES.items():
            own, common = getattr(self, step), self.augment_p
            if common is None:
                common = 0.0 if step in replaced else default
            probabilities[step] = common if own is None else own
        return probabilities
