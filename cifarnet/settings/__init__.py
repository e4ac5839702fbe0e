"""All settings of a run: the groups together, and the checks across them."""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from cifarnet.core.errors import UserError
from cifarnet.settings.augmentation import PROBABILITIES, AugmentationSettings
from cifarnet.settings.data import LARGEST_IMAGE, DataSettings
from cifarnet.settings.evaluation import EvaluationSettings
from cifarnet.settings.flags import Group
from cifarnet.settings.network import NetworkSettings
from cifarnet.settings.output import OutputSettings
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.settings.training import TrainingSettings


@dataclass(frozen=True)
class Settings:
    """The checked settings of one run, in groups. Raises `UserError` for a contradiction."""

    data: DataSettings = field(default_factory=DataSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    @classmethod
    def from_flags(cls, **flags: Any) -> "Settings":
        """The settings that `flags` ask for, by flag name; the others have their defaults. Raises
        `UserError` for a wrong value, and `KeyError` for an unknown name."""
        by_group: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for name, value in flags.items():
            by_group[GROUP_OF[name]][name] = value
        return cls(**{name: GROUPS[name](**chosen) for name, chosen in by_group.items()})

    @property
    def flags(self) -> dict[str, Any]:
        """The value of every flag, by name."""
        return {name: getattr(getattr(self, group), name) for name, group in GROUP_OF.items()}

    def replace(self, **flags: Any) -> "Settings":
        """These settings with other values of some flags. Raises `UserError`."""
        return Settings.from_flags(**self.flags | flags)

    def __post_init__(self) -> None:
        self._check_image_sizes()
        self.check_parts()
        if self.evaluation.evaluate == "ema" and self.training.ema_decay == 0:
            raise UserError(
                "--evaluate ema needs averaged weights; add --ema_decay 0.999 or leave it out"
            )

    def _check_image_sizes(self) -> None:
        size, network = self.data.image_size, self.network
        text = self.training.image_sizes or str(size)
        if not re.fullmatch(r"\s*\d{1,3}\s*(,\s*\d{1,3}\s*)*", text) or not all(
            8 <= each <= size for each in self.image_sizes
        ):
            raise UserError(
                f"--image_sizes {text} is not a list of whole numbers from 8 to {size}; "
                f"write it like 16,24,{size}"
            )
        if len(self.image_sizes) > self.training.epochs:
            raise UserError(
                f"--image_sizes has {len(self.image_sizes)} sizes but --epochs is only "
                f"{self.training.epochs}; leave some sizes out"
            )
        # Below 16 the last feature map is 1x1: a batch of one image then has no variance.
        if network.network == "residual" and min(self.image_sizes) < 16:
            raise UserError(
                f"--image_sizes {text} is too small for --network residual; start from 16"
            )
        side = size * network.scaling[2]
        if side > LARGEST_IMAGE:
            raise UserError(
                f"--compound_scale {network.compound_scale:g} enlarges images of {size} pixels to "
                f"{side:.0f}; {LARGEST_IMAGE} is the limit: lower it or --image_size"
            )

    def check_parts(self, processes: int = 1) -> None:
        """Raises `UserError` unless a batch can be divided among `processes`, and by --accumulate.
        Where images are mixed, each part needs two."""
        batch_size, accumulate = self.training.batch_size, self.training.accumulate
        parts = processes * accumulate
        if batch_size and batch_size % parts:
            among = [f"{processes} processes"] if processes > 1 else []
            among += [f"--accumulate {accumulate}"] if accumulate > 1 else []
            below = max(1, batch_size // parts) * parts
            raise UserError(
                f"--batch_size {batch_size} cannot be divided evenly by "
                f"{' and '.join(among)}; use a multiple of {parts}, such as {below}"
            )
        if self.augmentation.mixes and batch_size and batch_size < 2 * parts:
            each = f" in each of {parts} parts" if parts > 1 else ""
            raise UserError(
                f"--batch_size {batch_size} has one image{each}, but --mixup and --cutmix "
                f"need two; use --batch_size {2 * parts} or more"
            )

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The sides of the training images in pixels, each for an equal part of the run."""
        text = self.training.image_sizes or str(self.data.image_size)
        return tuple(int(size) for size in text.split(","))

    @property
    def keeps_best(self) -> bool:
        """Whether the run keeps best_model.pth: asked for, or needed by the report."""
        return self.output.save_best or self.evaluation.select == "best"


GROUPS: dict[str, type[Group]] = {group.name: group.type for group in fields(Settings)}
FLAGS: dict[str, Field] = {spec.name: spec for group in GROUPS.values() for spec in fields(group)}
GROUP_OF = {spec.name: name for name, group in GROUPS.items() for spec in fields(group)}
# The flags that change the result of a run: the others say where files lie or what is drawn.
OF_THE_RESULT = tuple(name for name, spec in FLAGS.items() if spec.metadata["on_resume"] != "any")


def settings_from_dict(values: Mapping[str, Any]) -> Settings:
    """Makes settings from the flags in a file. Ignores unknown names. Raises `UserError` if a value
    is not valid."""
    return Settings.from_flags(**{name: value for name, value in values.items() if name in FLAGS})


def changed_settings(before: Settings, now: Settings) -> tuple[list[str], list[str]]:
    """Compares the settings of a run (`before`) with those of its resumption (`now`). Returns the
    allowed changes and the forbidden ones, each as text such as "lr 0.1 -> 0.2"."""
    allowed, forbidden = [], []
    for name, old in before.flags.items():
        new, rule = now.flags[name], FLAGS[name].metadata["on_resume"]
        if old != new:
            fits = rule == "any" or (rule == "larger" and new > old)
            (allowed if fits else forbidden).append(f"{name} {old} -> {new}")
    return allowed, forbidden


def without_effect(settings: Settings) -> list[str]:
    """Returns a sentence for each flag that was given but does nothing with the other flags."""
    augmentation, training, data = settings.augmentation, settings.training, settings.data
    full, auto = augmentation.augment == "full", augmentation.auto_augment != "none"
    per_image = augmentation.augment_engine == "albumentations"
    on = augmentation.probabilities
    full_steps = ("augment_p", *PROBABILITIES, "shift", "scale", "degrees", "hole", "jitter")
    needs = (  # (what the flags need, whether it is available, the flags)
        ("--augment full", full, full_steps),
        ("--affine_p", not full or on["affine_p"] > 0, ("shift", "scale", "degrees")),
        ("--hole_p", not full or on["hole_p"] > 0, ("hole",)),
        ("--jitter_p", not full or on["jitter_p"] > 0, ("jitter",)),
        ("--mixup or --cutmix", augmentation.mixup + augmentation.cutmix > 0, ("mix_p",)),
        ("--augment full or light", augmentation.augment != "none", ("pad", "flip_p")),
        ("--augment full or light", augmentation.augment != "none" or auto, ("border",)),
        ("--augment_engine albumentations", per_image, ("num_workers",)),
        ("--attention", settings.network.attention != "none", ("attention_at",)),
        ("--teacher", training.teacher is not None, ("teacher_epochs", "teacher_tta")),
        ("--epochs above it", training.teacher_epochs < training.epochs, ("teacher_epochs",)),
        ("--optimizer muon", training.optimizer == "muon", ("muon_lr", "muon_momentum")),
        ("--amp", settings.precision.amp, ("amp_dtype",)),
        ("--dataset cifar10 or cifar100", data.dataset.startswith("cifar"), ("data_url",)),
        ("a --dataset other than digits", data.dataset != "digits", ("data_dir",)),
        ("--dataset folder", data.is_folder, ("skip_bad_images", "test_fraction")),
        ("--snapshot_freq", settings.output.snapshot_freq > 0, ("keep_snapshots",)),
        ("--plot_training", settings.evaluation.plot_training, ("plot_freq",)),
        ("--weight_decay", training.weight_decay > 0, ("decay_norms",)),
        ("--resume", settings.output.resume is not None, ("resume_override",)),
    )
    return [
        f"--{name} has no effect without {needed}"
        for needed, available, names in needs
        for name in names
        if not available and settings.flags[name] != FLAGS[name].default
    ]
