"""Every setting of a run, once: name, type, default, range, group and help.

The command line, the validation, the copy kept in a snapshot and the README's table of flags are all
derived from `Settings`. `python -m cifarnet.core.commandline` prints that table.
"""

import dataclasses
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cifarnet.core.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A range of numbers in the usual notation: `Interval("[0, 1)")` holds 0 and not 1."""

    text: str

    def __contains__(self, number: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = number >= low if self.text[0] == "[" else number > low
        below = number <= high if self.text[-1] == "]" else number < high
        return above and below


GROUPS = {
    "data": "data",
    "augmentation": "augmentation",
    "recipe": "training recipe",
    "precision": "precision and speed",
    "evaluation": "evaluation and figures",
    "snapshots": "snapshots",
    "output": "where things go",
}


def _flag(
    default: Any,
    group: str,
    help: str,
    *,
    within: str | None = None,
    choices: Sequence[str] | None = None,
    unset: str | None = None,
    metavar: str | None = None,
    on_resume: str = "keep",
) -> Any:
    """A field of `Settings`. `unset` says in words what a default of None stands for; `metavar` is what --help calls
    a value that is no mere number, path or choice.

    `on_resume` says what a resumed run may do with it: "keep", because another value alters the result; "raise";
    or "change".
    """
    meta = {
        "group": group,
        "help": help,
        "within": Interval(within) if within else None,
        "choices": choices,
        "unset": unset,
        "metavar": metavar,
        "on_resume": on_resume,
    }
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Settings:
    """The validated, immutable settings of one run; each field is the command-line flag of the same name.

    Raises `UserError` when built from a value of the wrong type or outside its range.
    """

    # fmt: off
    dataset: str = _flag("cifar10", "data", "cifar10 (downloaded once), folder (train/<class>/*, test/<class>/*) or digits (ships with scikit-learn)", choices=("cifar10", "folder", "digits"))
    data_dir: str = _flag("./data", "data", "where cifar10 is kept or downloaded to; the tree itself for folder", on_resume="change")
    data_url: str | None = _flag(None, "data", "another address (http, https or file) of the archive that cifar10 is downloaded as", unset="the official server", metavar="URL", on_resume="change")
    dataset_name: str | None = _flag(None, "data", "name of the data set in logs and reports", unset="the data set's or folder's own", metavar="NAME", on_resume="change")
    limit_train: int = _flag(0, "data", "use a fixed, class-balanced part of this many training images; 0: all", within="[0, inf)")
    limit_test: int = _flag(0, "data", "use a fixed, class-balanced part of this many test images; 0: all", within="[0, inf)")
    val_fraction: float = _flag(0.0, "data", "share of the training images held back, stratified, to select by; the test set is then looked at once, at the end; 0: the test set is evaluated during the run, every --eval_freq epochs", within="[0, 1)")
    num_workers: int | None = _flag(None, "data", "processes that augment images; 0: in the main process", within="[0, 256]", unset="up to 4, by cores", on_resume="change")
    skip_bad_images: bool = _flag(False, "data", "go on without the images of a folder that cannot be read, and list them")

    augment: str = _flag("full", "augmentation", "full: crop, flip, affine, colour jitter and a hole; light: crop and flip; none", choices=("full", "light", "none"))
    augment_p: float | None = _flag(None, "augmentation", "probability of each step of full beyond crop and flip", within="[0, 1]", unset="0.5")
    affine_p: float | None = _flag(None, "augmentation", "probability of full's shift, scale and rotation", within="[0, 1]", unset="--augment_p")
    jitter_p: float | None = _flag(None, "augmentation", "probability of full's jitter of colours", within="[0, 1]", unset="--augment_p")
    hole_p: float | None = _flag(None, "augmentation", "probability of full's hole", within="[0, 1]", unset="--augment_p")
    augment_engine: str = _flag("albumentations", "augmentation", "albumentations: an image at a time, in --num_workers processes; batched: the same policy on whole batches, on the device, without workers", choices=("albumentations", "batched"))
    preview_augment: str | None = _flag(None, "augmentation", "draw originals and augmented versions, at 32x32, into this PNG file, then end", unset="off", on_resume="change")

    recipe: str | None = _flag(None, "recipe", "read flags from this TOML file; what the command line says wins", unset="off", on_resume="change")
    network: str = _flag("cifarnet", "recipe", "residual: a larger network, to be a --teacher", choices=("cifarnet", "residual"))
    epochs: int = _flag(250, "recipe", "passes over the training images", within="[1, 1000000]", on_resume="raise")
    batch_size: int = _flag(512, "recipe", "images per step, on all devices together", within="[1, 1000000]")
    accumulate: int = _flag(1, "recipe", "parts that each process computes its share of a batch in, one after the other, for less memory; batch normalisation then takes the statistics of each part alone", within="[1, 1000000]")
    image_sizes: str | None = _flag(None, "recipe", "sides in pixels, as in 16,20,24,28,32: the run in as many equal parts, its training images resized to them; evaluation is always at 32", unset="32 throughout", metavar="N,N,...")
    optimizer: str = _flag("sgd", "recipe", "muon: orthogonalised updates for the dense convolutions, sgd for the rest", choices=("sgd", "adamw", "muon"))
    lr: float = _flag(0.1, "recipe", "learning rate of the first batch (after the warm-up, if any)", within="(0, inf)")
    min_lr: float = _flag(1e-6, "recipe", "learning rate of the last batch; --schedule in between, stepped per batch", within="[0, inf)")
    schedule: str = _flag("cosine", "recipe", "how the learning rate falls", choices=("cosine", "linear"))
    warmup_epochs: int = _flag(0, "recipe", "epochs of linear warm-up before the schedule", within="[0, 1000000]")
    momentum: float = _flag(0.9, "recipe", "Nesterov momentum of sgd (0: none), first beta of adamw", within="[0, 1)")
    muon_lr: float = _flag(0.1, "recipe", "learning rate of muon's convolutions, in place of --lr", within="(0, inf)")
    muon_momentum: float = _flag(0.6, "recipe", "Nesterov momentum of muon's convolutions", within="[0, 1)")
    weight_decay: float = _flag(5e-4, "recipe", "L2 penalty (adamw: decoupled; muon's convolutions have unit rows instead)", within="[0, inf)")
    decay_norms: bool = _flag(True, "recipe", "weight decay on normalisations and biases too")
    label_smoothing: float = _flag(0.0, "recipe", "share of each training label spread evenly over all classes; the training loss then is that of such labels", within="[0, 1)")
    ema_decay: float = _flag(0.0, "recipe", "keep averaged weights, an exponential moving average of this decay a step; 0: none", within="[0, 1)")
    max_grad_norm: float = _flag(1.0, "recipe", "gradient norm above which the gradient is scaled down; 0: off", within="[0, inf)")
    dropout: float = _flag(0.1, "recipe", "share of channels zeroed by the dropouts", within="[0, 1)")
    teacher: str | None = _flag(None, "recipe", "learn from the predictions of a trained network for the same classes in place of the labels: the name of a result, a .safetensors file or a .pth snapshot; the training loss then is the divergence from them", unset="off", metavar="NAME|PATH")
    init: str | None = _flag(None, "recipe", "start from trained weights: the name of a result, a .safetensors file or a .pth snapshot; with a fresh head where the classes are others; images are normalised by their own statistics all the same", unset="off", metavar="NAME|PATH")
    seed: int = _flag(42, "recipe", "seed of initial weights, order, augmentation and dropout", within="[0, 4294967295]")
    deterministic: bool = _flag(False, "recipe", "deterministic algorithms only: the same figures every time on one machine, slower on CUDA")

    amp: bool = _flag(False, "precision", "mixed precision: autocast in --amp_dtype")
    amp_dtype: str = _flag("auto", "precision", "auto: bf16, or fp16 on CUDA devices without it; fp16 scales the loss and needs CUDA", choices=("auto", "bf16", "fp16"))
    sync_bn: bool = _flag(False, "precision", "under torchrun, batch normalisation with the statistics of all devices instead of each one's own; needs CUDA")
    compile: bool = _flag(False, "precision", "torch.compile the training step: up to a minute at the start; on CUDA with CUDA graphs, on the CPU a C++ compiler is needed")
    device: str = _flag("auto", "precision", "auto: CUDA, else MPS, else the CPU", choices=("auto", "cpu", "cuda", "mps"))
    keep_memory: bool = _flag(True, "precision", "keep freed activations inside the process (glibc on the CPU): several times faster, more memory held", on_resume="change")

    evaluate: str = _flag("raw", "evaluation", "which weights the accuracies, the best model and the report are of; ema: the averaged ones, of --ema_decay", choices=("raw", "ema"))
    eval_freq: int = _flag(1, "evaluation", "epochs between evaluations; 0: only after the last one, which is always evaluated", within="[0, 1000000]")
    select: str = _flag("last", "evaluation", "which model the report describes; best keeps best_model.pth as --save_best does", choices=("last", "best"), on_resume="change")
    plot_training: bool = _flag(True, "evaluation", "draw training_curves.png and learning_rate_schedule.png", on_resume="change")
    plot_evaluation: bool = _flag(True, "evaluation", "draw confusion_matrix.png and class_metrics.png", on_resume="change")
    plot_freq: int = _flag(50, "evaluation", "epochs between redrawings of the curves during the run; 0: only at the end", within="[0, 1000000]", on_resume="change")

    save_best: bool = _flag(False, "snapshots", "keep best_model.pth, replaced only when the accuracy improves", on_resume="change")
    snapshot_freq: int = _flag(5, "snapshots", "epochs between numbered snapshots (last.pth is written every epoch); 0: none", within="[0, 1000000]", on_resume="change")
    keep_snapshots: int = _flag(0, "snapshots", "how many numbered snapshots stay, the newest; 0: all", within="[0, inf)", on_resume="change")
    resume: str | None = _flag(None, "snapshots", "go on from this snapshot, or from the newest in --snapshot_dir with auto", unset="off", metavar="PATH|auto", on_resume="change")
    resume_override: bool = _flag(False, "snapshots", "let --resume go on with flags that alter the result", on_resume="change")

    log_dir: str = _flag("./log", "output", "log and history of each run", on_resume="change")
    snapshot_dir: str = _flag("./snapshots_complete", "output", "snapshots", on_resume="change")
    plot_dir: str = _flag("./plots_complete", "output", "figures, metrics.json and classification_report.txt", on_resume="change")
    # fmt: on

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            _check(spec, value)
            if spec.type in (float, float | None) and type(value) is int:  # `lr = 1` in a recipe
                object.__setattr__(self, spec.name, float(value))
        if self.min_lr > self.lr:
            raise UserError(
                f"--min_lr {self.min_lr:g} is above --lr {self.lr:g}; the rate falls from lr to min_lr"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup_epochs {self.warmup_epochs} leaves no epoch of --epochs {self.epochs} to train in; "
                f"lower --warmup_epochs or raise --epochs"
            )
        if self.teacher and self.label_smoothing:
            raise UserError(
                "--teacher replaces the labels that --label_smoothing softens; leave one of them out"
            )
        if self.evaluate == "ema" and self.ema_decay == 0:
            raise UserError(
                "--evaluate ema needs averaged weights; add --ema_decay 0.999, or leave it out"
            )
        sizes = self._sizes
        if not all(re.fullmatch(r"\s*\d{1,2}\s*", size) and 8 <= int(size) <= 32 for size in sizes):
            raise UserError(
                f"--image_sizes {self.image_sizes} is no list of whole numbers from 8 to 32, as in 16,24,32"
            )
        if len(sizes) > self.epochs:
            raise UserError(
                f"--image_sizes names {len(sizes)} sizes for --epochs {self.epochs}; leave some out"
            )
        # below 16 its last feature map is a single pixel, and of one image no deviation is to be had
        if self.network == "residual" and min(map(int, sizes)) < 16:
            raise UserError(
                f"--image_sizes {self.image_sizes} is too small for --network residual; start from 16"
            )

    def image_size(self, epoch: int) -> int:
        """The side in pixels of the training images in `epoch`, counted from 1."""
        return int(self._sizes[(epoch - 1) * len(self._sizes) // self.epochs])

    @property
    def _sizes(self) -> list[str]:
        return (self.image_sizes or "32").split(",")

    def evaluates(self, epoch: int) -> bool:
        """Whether the model is evaluated after `epoch`, counted from 1."""
        return epoch == self.epochs or (self.eval_freq > 0 and epoch % self.eval_freq == 0)

    @property
    def eval_batch_size(self) -> int:
        """Images evaluated at a time: no more than a part of --accumulate's, for the memory is no larger then."""
        return max(1, self.batch_size // self.accumulate)

    @property
    def keeps_best(self) -> bool:
        """Whether best_model.pth is kept: asked for, or needed by the report."""
        return self.save_best or self.select == "best"


def _check(spec: dataclasses.Field, value: Any) -> None:
    """Raises `UserError` unless `value` fits the field's type, choices and range."""
    if value is None and spec.default is None:
        return
    kinds = typing.get_args(spec.type) or (spec.type,)  # of `int | None`, or the type itself
    fits = type(value) in kinds or (float in kinds and type(value) is int)
    if not fits:
        raise UserError(f"--{spec.name} {value!r} is not of type {kinds[0].__name__}")
    if spec.metadata["choices"] and value not in spec.metadata["choices"]:
        raise UserError(
            f"--{spec.name} {value!r} is not one of {', '.join(spec.metadata['choices'])}"
        )
    within = spec.metadata["within"]
    # whole numbers may be too large for a float
    if within and not (abs(value) <= sys.float_info.max and value in within):
        shown = f"{value:g}" if isinstance(value, float) else str(value)[:30]
        raise UserError(
            f"--{spec.name} {shown} is out of range; it must be a finite number in {within.text}"
        )
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise UserError(
            f"--{spec.name} is empty or holds a null character; give it a value or leave it out"
        )


def changed_settings(before: Settings, now: Settings) -> tuple[list[str], list[str]]:
    """What differs between the settings of a run and of its resumption, in words: (what may, what may not)."""
    words: tuple[list[str], list[str]] = ([], [])
    for spec in dataclasses.fields(now):
        old, new, rule = (
            getattr(before, spec.name),
            getattr(now, spec.name),
            spec.metadata["on_resume"],
        )
        if old != new:
            allowed = rule == "change" or (rule == "raise" and new > old)
            words[0 if allowed else 1].append(f"{spec.name} {old} -> {new}")
    return words


def without_effect(config: Settings) -> list[str]:
    """The flags that have none beside the others, in words."""
    needs = {
        "--augment full": (
            config.augment == "full",
            ("augment_p", "affine_p", "jitter_p", "hole_p"),
        ),
        "--augment_engine albumentations": (
            config.augment_engine == "albumentations",
            ("num_workers",),
        ),
        "--optimizer muon": (config.optimizer == "muon", ("muon_lr", "muon_momentum")),
        "--amp": (config.amp, ("amp_dtype",)),
        "--dataset cifar10": (config.dataset == "cifar10", ("data_url",)),
        "--dataset folder": (config.dataset == "folder", ("skip_bad_images",)),
        "--snapshot_freq": (config.snapshot_freq > 0, ("keep_snapshots",)),
        "--plot_training": (config.plot_training, ("plot_freq",)),
        "--weight_decay": (config.weight_decay > 0, ("decay_norms",)),
        "--resume": (config.resume is not None, ("resume_override",)),
    }
    defaults = {spec.name: spec.default for spec in dataclasses.fields(config)}
    return [
        f"--{name} has no effect without {needed}"
        for needed, (there, names) in needs.items()
        for name in names
        if not there and getattr(config, name) != defaults[name]
    ]


def settings_from_dict(settings: dict[str, Any]) -> Settings:
    """The settings kept in a snapshot; names that this version does not know are left out."""
    known = {spec.name for spec in dataclasses.fields(Settings)}
    return Settings(**{name: value for name, value in settings.items() if name in known})
