"""Every setting of a run, once: name, type, default, range, group and help.

The parser, the checks, the copy kept in a snapshot and docs/flags.md all follow from `Settings`.
"""

import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cifarnet.core.errors import UserError

GROUPS = {
    "data": "data",
    "augmentation": "augmentation",
    "recipe": "training recipe",
    "precision": "precision and speed",
    "evaluation": "evaluation and figures",
    "snapshots": "snapshots",
    "output": "output folders",
}


# Defaults that follow from other flags or from the images.
PROBABILITIES = {"affine_p": 0.05, "hole_p": 0.05, "jitter_p": 0.1}  # docs/recipes.md
REPLACED = ("affine_p", "jitter_p")  # 0 beside --auto_augment, whose steps do the same
SMOOTHING = 0.1
BATCH_SIZE = 512  # images; lowered if there are fewer training images
# The folders of a run's snapshots and of its report, in --run_dir.
SNAPSHOTS, PLOTS = "snapshots_complete", "plots_complete"

LARGEST_IMAGE = 128  # pixels
# How depth, width and image side grow with each step of --compound_scale, so that the work about
# doubles: the alpha, beta and gamma of EfficientNet (Tan & Le 2019, arXiv 1905.11946).
COMPOUND = (1.2, 1.1, 1.15)


@dataclass(frozen=True)
class Interval:
    """A range of numbers in the usual notation: `Interval("[0, 1)")` contains 0 but not 1."""

    text: str

    def __contains__(self, number: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = number >= low if self.text[0] == "[" else number > low
        below = number <= high if self.text[-1] == "]" else number < high
        return above and below


def _flag(
    default: Any,
    group: str,
    help: str,
    *,
    within: str | None = None,
    numbers: Sequence[int] = (),
    choices: Sequence[str] = (),
    unset: str | None = None,
    metavar: str | None = None,
    on_resume: Literal["same", "larger", "any"] = "same",
) -> Any:
    """Makes a field of `Settings`.

    `within` is the allowed range. `numbers` are the allowed counts of a list of numbers, which is
    kept as text such as "0.1,0.2"; each number is `within` the range. `unset` describes a default
    of None. `metavar` stands for the value in --help. `on_resume` says which values a resumed run
    may have: the "same" because another one changes the result, a "larger" one too, or "any".
    """
    meta = {
        "group": group,
        "help": help,
        "within": Interval(within) if within else None,
        "numbers": numbers,
        "choices": choices,
        "unset": unset,
        "metavar": metavar,
        "on_resume": on_resume,
    }
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Settings:
    """The checked settings of one run. Each field is the command-line flag of the same name.

    Raises `UserError` if a value has the wrong type, is out of range, or contradicts another.
    """

    # fmt: off
    # data
    dataset: str = _flag("cifar10", "data",
        "Which images to use. cifar10 and cifar100 are downloaded once; folder reads your own "
        "images from --data_dir; digits comes with scikit-learn.",
        choices=("cifar10", "cifar100", "folder", "digits"))
    data_dir: str = _flag("./data", "data",
        "Folder that holds cifar10 or cifar100, or receives its download. With --dataset folder: "
        "the folder that holds a folder for each class, or train/ and test/ with a folder for each "
        "class.",
        on_resume="any")
    labels: str | None = _flag(None, "data",
        "With --dataset folder: take the images and their classes from this CSV file, not from "
        "class folders. Each line is path,label; paths start from the file or from --data_dir.",
        unset="off", metavar="FILE", on_resume="any")
    image_size: int = _flag(32, "data",
        "Side of all images in pixels, a multiple of 16. Images of other sizes are resized.",
        within=f"[32, {LARGEST_IMAGE}]")
    data_url: str | None = _flag(None, "data",
        "Download cifar10 or cifar100 from this address (http, https or file).",
        unset="the official server", metavar="URL", on_resume="any")
    dataset_name: str | None = _flag(None, "data",
        "Name of the data set in logs and reports.",
        unset="the name of the data set or its folder", metavar="NAME", on_resume="any")
    limit_train: int = _flag(0, "data",
        "Use only this many training images, always the same ones, balanced over the classes. "
        "0: all.",
        within="[0, inf)")
    limit_test: int = _flag(0, "data",
        "Use only this many test images, always the same ones, balanced over the classes. 0: all.",
        within="[0, inf)")
    val_fraction: float = _flag(0.0, "data",
        "Hold back this share of the training images, stratified by class, to select the model; "
        "the test set is then evaluated once, at the end. 0: hold back none and evaluate the test "
        "set every --eval_freq epochs.",
        within="[0, 1)")
    test_fraction: float = _flag(0.2, "data",
        "With --dataset folder: where there is no folder of test images, hold back this share of "
        "the images of each class to test on, always the same ones.",
        within="(0, 1)")
    num_workers: int | None = _flag(None, "data",
        "Processes that augment images. 0: augment in the main process.",
        within="[0, 256]", unset="one per core, at most 4", on_resume="any")
    skip_bad_images: bool = _flag(False, "data",
        "With --dataset folder: skip images that cannot be read, and list them.")

    # augmentation
    augment: str = _flag("full", "augmentation",
        "full: crop, flip, affine, hole and colour jitter. light: crop and flip. none: nothing.",
        choices=("full", "light", "none"))
    augment_p: float | None = _flag(None, "augmentation",
        "Probability of each step that full adds to light: affine, hole and jitter.",
        within="[0, 1]", unset="the three flags below")
    affine_p: float | None = _flag(None, "augmentation",
        "Probability of the shift, scale and rotation of full.",
        within="[0, 1]",
        unset=f"--augment_p, else {PROBABILITIES['affine_p']}, or 0 with --auto_augment")
    hole_p: float | None = _flag(None, "augmentation",
        "Probability of the hole of full.",
        within="[0, 1]", unset=f"--augment_p, else {PROBABILITIES['hole_p']}")
    jitter_p: float | None = _flag(None, "augmentation",
        "Probability of the colour jitter of full.",
        within="[0, 1]",
        unset=f"--augment_p, else {PROBABILITIES['jitter_p']}, or 0 with --auto_augment")
    pad: int = _flag(4, "augmentation",
        "Pad each side by this many pixels, then cut a random crop of the original size. Grows "
        "with --image_size, like --hole: 4 pixels of 32 are 8 pixels of 64.",
        within="[0, 16]")
    shift: float = _flag(0.0625, "augmentation",
        "Largest shift along each axis, as a share of the image. Whole pixels are shifted.",
        within="[0, 1)")
    scale: float = _flag(0.1, "augmentation",
        "Largest change of scale: 0.1 scales by 0.9 to 1.1.",
        within="[0, 1)")
    degrees: float = _flag(15.0, "augmentation",
        "Largest rotation, either way, in degrees.",
        within="[0, 180]")
    hole: int = _flag(16, "augmentation",
        "Height and width of the hole, in pixels. It has the mean colour of the data set.",
        within="[1, 32]")
    jitter: str = _flag("0.2,0.2,0.2,0.02", "augmentation",
        "Largest change of brightness, contrast and saturation, as a share, and of hue, in turns "
        "of the colour wheel.",
        within="[0, 1)", numbers=(4,), metavar="B,C,S,H")
    border: str = _flag("mean", "augmentation",
        "Colour that comes in from outside the image: the mean of the data set, or black.",
        choices=("mean", "black"))
    auto_augment: str = _flag("none", "augmentation",
        "Change each image by a published policy, after crop and flip and before the hole: "
        "AutoAugment (its policy for CIFAR-10), RandAugment or TrivialAugmentWide, as torchvision "
        "has them. Affine and jitter are then off, unless their probabilities are given.",
        choices=("none", "autoaugment", "randaugment", "trivialaugment"))
    mixup: float = _flag(0.0, "augmentation",
        "Average the images of a batch in pairs, and their labels too. Their shares are drawn "
        "from Beta(ALPHA, ALPHA), once a batch. 0: off.",
        within="[0, 100]", metavar="ALPHA")
    cutmix: float = _flag(0.0, "augmentation",
        "Paste a rectangle of one image of a batch into another, and mix the labels by area. "
        "The area is drawn from Beta(ALPHA, ALPHA), once a batch. With --mixup too, each batch "
        "draws one of the two. 0: off.",
        within="[0, 100]", metavar="ALPHA")
    mix_p: float = _flag(1.0, "augmentation",
        "Probability that a batch is mixed by --mixup or --cutmix. With --accumulate or several "
        "processes, each part of a batch is mixed within itself.",
        within="[0, 1]")
    augment_engine: str = _flag("albumentations", "augmentation",
        "albumentations: one image at a time, in --num_workers processes. batched: the same "
        "policy on whole batches, on the device, without workers.",
        choices=("albumentations", "batched"))
    preview_augment: str | None = _flag(None, "augmentation",
        "Draw images before and after augmentation, at --image_size, into this PNG file, then "
        "stop.",
        unset="off", on_resume="any")

    # training recipe
    recipe: str | None = _flag(None, "recipe",
        "Read flags from this TOML file. Flags on the command line win.",
        unset="off", on_resume="any")
    network: str = _flag("cifarnet", "recipe",
        "residual is a larger network, meant to be a --teacher.",
        choices=("cifarnet", "residual"))
    attention: str = _flag("none", "recipe",
        "Add attention to the separable blocks of cifarnet. eca and se weigh channels, spatial "
        "weighs places, cbam both. simam weighs each value and has no parameters.",
        choices=("none", "eca", "se", "simam", "cbam", "spatial"))
    attention_at: str = _flag("2,3,4", "recipe",
        "Blocks of cifarnet that get the attention, with their repeats.",
        within="[2, 4]", numbers=(1, 2, 3), metavar="N,N,N")
    width: float = _flag(1.0, "recipe",
        "Multiply the channels of cifarnet, rounded to multiples of 8.",
        within="[0.1, 8]")
    depth: float = _flag(1.0, "recipe",
        "Multiply the number of separable blocks of cifarnet (three), rounded up: 1.2 repeats the "
        "last block, 2 repeats each. A repeat adds its input to its output.",
        within="[1, 8]")
    compound_scale: float = _flag(0.0, "recipe",
        "Grow cifarnet by X steps of EfficientNet's rule. Each multiplies the depth by 1.2, the "
        "width by 1.1 and the side of the images by 1.15, and about doubles the work. The images "
        "are enlarged on the device, in evaluation too.",
        within="[0, 10]")
    epochs: int = _flag(250, "recipe",
        "Passes over the training images.",
        within="[1, 1000000]", on_resume="larger")
    batch_size: int | None = _flag(None, "recipe",
        "Images per step, over all devices together.",
        within="[1, 1000000]", unset="512, or all training images if they are fewer")
    accumulate: int = _flag(1, "recipe",
        "Compute the share of each process in this many parts, one after the other, to save "
        "memory. Batch normalisation then uses the statistics of each part.",
        within="[1, 1000000]")
    image_sizes: str | None = _flag(None, "recipe",
        "Sizes of the training images in pixels, such as 16,20,24,28,32: each for an equal part "
        "of the run. Evaluation always uses --image_size.",
        unset="--image_size throughout", metavar="N,N,...")
    optimizer: str = _flag("sgd", "recipe",
        "muon: orthogonalised updates for the dense convolutions, sgd for the rest.",
        choices=("sgd", "adamw", "muon"))
    lr: float = _flag(0.1, "recipe",
        "Learning rate of the first batch, or of the first one after the warm-up.",
        within="(0, inf)")
    min_lr: float = _flag(1e-6, "recipe",
        "Learning rate of the last batch.",
        within="[0, inf)")
    schedule: str = _flag("cosine", "recipe",
        "How the learning rate falls from --lr to --min_lr.",
        choices=("cosine", "linear"))
    schedule_per: str = _flag("step", "recipe",
        "When the learning rate falls: after each step, or after each epoch. Per epoch, --min_lr "
        "is the rate that would follow the last epoch.",
        choices=("step", "epoch"))
    warmup_epochs: int = _flag(0, "recipe",
        "Epochs of linear warm-up before the schedule.",
        within="[0, 1000000]")
    momentum: float = _flag(0.9, "recipe",
        "Nesterov momentum of sgd (0: none), first beta of adamw.",
        within="[0, 1)")
    muon_lr: float = _flag(0.1, "recipe",
        "Learning rate of the convolutions that muon updates, in place of --lr.",
        within="(0, inf)")
    muon_momentum: float = _flag(0.6, "recipe",
        "Nesterov momentum of the convolutions that muon updates.",
        within="[0, 1)")
    weight_decay: float = _flag(5e-4, "recipe",
        "L2 penalty; decoupled with adamw. Convolutions that muon updates get none: each row of "
        "their weights is kept at length 1.",
        within="[0, inf)")
    decay_norms: bool = _flag(True, "recipe",
        "Apply weight decay to normalisation layers and biases too.")
    label_smoothing: float | None = _flag(None, "recipe",
        "Share of each training label that is spread evenly over all classes. The training loss "
        "is computed with the smoothed labels, the test loss with the labels as they are.",
        within="[0, 1)", unset=f"{SMOOTHING}; with --teacher 0")
    class_weights: str = _flag("none", "recipe",
        "balanced: weight the loss of each image by the inverse frequency of its class, so that "
        "all classes count the same.",
        choices=("none", "balanced"))
    ema_decay: float = _flag(0.0, "recipe",
        "Also keep averaged weights: an exponential moving average with this decay per step. "
        "0: none.",
        within="[0, 1)")
    max_grad_norm: float = _flag(1.0, "recipe",
        "Scale the gradient down to this norm when it is larger. 0: off.",
        within="[0, inf)")
    dropout: str = _flag("0.05,0.1,0.1,0.02", "recipe",
        "Share of the channels that dropout sets to zero: one rate, or one for each of the four "
        "blocks. --network residual uses the last one, before its head.",
        within="[0, 1)", numbers=(1, 4), metavar="P|P,P,P,P")
    teacher: str | None = _flag(None, "recipe",
        "Learn from the predictions of a trained network with the same classes, instead of from "
        "the labels: the name of a result, a .safetensors file or a .pth snapshot. The training "
        "loss is then the divergence from the predictions.",
        unset="off", metavar="NAME|PATH")
    init: str | None = _flag(None, "recipe",
        "Start from trained weights: the name of a result, a .safetensors file or a .pth "
        "snapshot. What does not fit starts fresh, and so do the classes that it does not know. "
        "The images are still normalised with their own statistics.",
        unset="off", metavar="NAME|PATH")
    seed: int = _flag(42, "recipe",
        "Seed of the initial weights, the image order, augmentation and dropout.",
        within="[0, 4294967295]")
    deterministic: bool = _flag(False, "recipe",
        "Use only deterministic algorithms: the same results every time on one machine, but "
        "slower on CUDA.")

    # precision and speed
    amp: bool = _flag(False, "precision",
        "Mixed precision: autocast to --amp_dtype.")
    amp_dtype: str = _flag("auto", "precision",
        "auto: bf16, or fp16 on CUDA devices without bf16. fp16 scales the loss and needs CUDA.",
        choices=("auto", "bf16", "fp16"))
    sync_bn: bool = _flag(False, "precision",
        "Under torchrun: compute batch normalisation statistics over all devices together. "
        "Needs CUDA.")
    compile: bool = _flag(False, "precision",
        "Use torch.compile for the training step. It takes up to a minute at the start. On CUDA it "
        "uses CUDA graphs and needs gcc or clang; on the CPU it needs g++ and is slower.")
    device: str = _flag("auto", "precision",
        "auto: CUDA if there is one, else MPS, else the CPU.",
        choices=("auto", "cpu", "cuda", "mps"))
    keep_memory: bool = _flag(True, "precision",
        "Keep freed activations in the process (on the CPU, with glibc). This is several times "
        "faster, but the process holds more memory.",
        on_resume="any")

    # evaluation and figures
    evaluate: str = _flag("raw", "evaluation",
        "Weights used for accuracies, the best model and the report. ema: the averaged weights "
        "of --ema_decay.",
        choices=("raw", "ema"))
    eval_freq: int = _flag(1, "evaluation",
        "Epochs between evaluations; the last epoch is always evaluated. 0: only the last one.",
        within="[0, 1000000]")
    select: str = _flag("last", "evaluation",
        "Model that the report describes. best also keeps best_model.pth, like --save_best.",
        choices=("last", "best"), on_resume="any")
    plot_training: bool = _flag(True, "evaluation",
        "Draw training_curves.png and learning_rate_schedule.png.",
        on_resume="any")
    plot_evaluation: bool = _flag(True, "evaluation",
        "Draw confusion_matrix.png and class_metrics.png.",
        on_resume="any")
    report: bool = _flag(True, "evaluation",
        "Write report.html: one page with the figures, the curves and the mistakes themselves.",
        on_resume="any")
    plot_freq: int = _flag(50, "evaluation",
        "Epochs after which the curves are drawn again during the run. 0: only at the end.",
        within="[0, 1000000]", on_resume="any")

    # snapshots
    save_best: bool = _flag(False, "snapshots",
        "Keep best_model.pth; it is replaced only when the accuracy improves.",
        on_resume="any")
    snapshot_freq: int = _flag(5, "snapshots",
        "Epochs between numbered snapshots; last.pth is written every epoch. 0: no numbered ones.",
        within="[0, 1000000]", on_resume="any")
    keep_snapshots: int = _flag(0, "snapshots",
        "Keep only this many numbered snapshots, the newest ones. 0: all.",
        within="[0, inf)", on_resume="any")
    resume: str | None = _flag(None, "snapshots",
        "Continue from this snapshot. auto: from the newest one in --snapshot_dir, or start a new "
        "run if there is none.",
        unset="off", metavar="PATH|auto", on_resume="any")
    resume_override: bool = _flag(False, "snapshots",
        "Let --resume continue with flags that change the result.",
        on_resume="any")

    # output folders
    run_dir: str = _flag(".", "output",
        "Folder of the run: the next three lie in it.", on_resume="any")
    log_dir: str | None = _flag(None, "output",
        "Folder for the log and the history of each run.",
        unset="log, in --run_dir", on_resume="any")
    snapshot_dir: str | None = _flag(None, "output",
        "Folder for snapshots.",
        unset="snapshots_complete, in --run_dir", on_resume="any")
    plot_dir: str | None = _flag(None, "output",
        "Folder for figures, metrics.json and classification_report.txt.",
        unset="plots_complete, in --run_dir", on_resume="any")
    tensorboard: bool = _flag(False, "output",
        "Also write the history, pictures and the final figures for TensorBoard, into a folder "
        "beside the log. Needs the package tensorboard.",
        on_resume="any")
    # fmt: on

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            check_value(spec, value)
            if value_type(spec) is float and type(value) is int:  # `lr = 1` in a recipe
                object.__setattr__(self, spec.name, float(value))
            if spec.metadata["numbers"]:  # one text for equal lists: 0 for `dropout = 0.0`
                text = ",".join(repr(n).removesuffix(".0") for n in numbers_in(str(value)))
                object.__setattr__(self, spec.name, text)
        self._check_image_sizes()
        self._check_network()
        if numbers_in(self.jitter)[3] > 0.5:
            raise UserError(f"--jitter {self.jitter}: hue moves by 0.5 turns at most; lower it")
        if self.warmup_epochs and self.schedule_per == "epoch":
            raise UserError(
                "--warmup_epochs rises step by step; leave it or --schedule_per epoch out"
            )
        self.check_parts()
        if self.auto_augment != "none" and self.augment_engine == "batched":
            raise UserError(
                f"--auto_augment {self.auto_augment} works on one image at a time; leave it or "
                f"--augment_engine batched out"
            )
        if self.min_lr > self.lr:
            raise UserError(
                f"--min_lr {self.min_lr:g} is above --lr {self.lr:g}; lower it or raise --lr"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup_epochs {self.warmup_epochs} leaves no epoch of --epochs {self.epochs} "
                f"for the schedule; lower it or raise --epochs"
            )
        if self.teacher and self.label_smoothing:
            raise UserError(
                "--teacher replaces the labels, so --label_smoothing does nothing; leave one out"
            )
        if self.teacher and self.class_weights != "none":
            raise UserError(
                "--teacher replaces the labels, so --class_weights does nothing; leave one out"
            )
        if self.evaluate == "ema" and self.ema_decay == 0:
            raise UserError(
                "--evaluate ema needs averaged weights; add --ema_decay 0.999 or leave it out"
            )

    def _check_image_sizes(self) -> None:
        if self.image_size % 16:
            raise UserError(
                f"--image_size {self.image_size} is not a multiple of 16; use 32, 48, 64, ... 128"
            )
        text = self.image_sizes or str(self.image_size)
        if not re.fullmatch(r"\s*\d{1,3}\s*(,\s*\d{1,3}\s*)*", text) or not all(
            8 <= size <= self.image_size for size in self.sizes
        ):
            raise UserError(
                f"--image_sizes {text} is not a list of whole numbers from 8 to {self.image_size}; "
                f"write it like 16,24,{self.image_size}"
            )
        if len(self.sizes) > self.epochs:
            raise UserError(
                f"--image_sizes has {len(self.sizes)} sizes but --epochs is only {self.epochs}; "
                f"leave some sizes out"
            )
        # Below 16 the last feature map is 1x1: a batch of one image then has no variance.
        if self.network == "residual" and min(self.sizes) < 16:
            raise UserError(
                f"--image_sizes {text} is too small for --network residual; start from 16"
            )

    def check_parts(self, processes: int = 1) -> None:
        """Raises `UserError` unless a batch can be divided among `processes`, and by --accumulate.

        Where images are mixed, each part needs two.
        """
        parts = processes * self.accumulate
        if self.batch_size and self.batch_size % parts:
            among = [f"{processes} processes"] if processes > 1 else []
            among += [f"--accumulate {self.accumulate}"] if self.accumulate > 1 else []
            below = max(1, self.batch_size // parts) * parts
            raise UserError(
                f"--batch_size {self.batch_size} cannot be divided evenly by "
                f"{' and '.join(among)}; use a multiple of {parts}, such as {below}"
            )
        if self.mixes and self.batch_size and self.batch_size < 2 * parts:
            each = f" in each of {parts} parts" if parts > 1 else ""
            raise UserError(
                f"--batch_size {self.batch_size} has one image{each}, but --mixup and --cutmix "
                f"need two; use --batch_size {2 * parts} or more"
            )

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with one another."""
        return self.mix_p > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def augments(self) -> bool:
        """Whether training images are changed at all."""
        return self.augment != "none" or self.auto_augment != "none" or self.mixes

    def _check_network(self) -> None:
        blocks = numbers_in(self.attention_at)
        if any(block % 1 for block in blocks) or len(set(blocks)) < len(blocks):
            raise UserError(
                f"--attention_at {self.attention_at} does not name blocks 2, 3 and 4, each once; "
                f"write it like 2,4"
            )
        names = ("attention", "width", "depth", "compound_scale")
        changed = [name for name in names if getattr(self, name) != FLAGS[name].default]
        if self.network == "residual" and changed:
            raise UserError(
                f"--{changed[0]} changes cifarnet only; leave it or --network residual out"
            )
        if self.compound_scale and (self.width, self.depth) != (1, 1):
            raise UserError(
                "--compound_scale sets width and depth itself; leave it, or --width and --depth, "
                "out"
            )
        side = self.image_size * self.scaling[2]
        if side > LARGEST_IMAGE:
            raise UserError(
                f"--compound_scale {self.compound_scale:g} enlarges images of {self.image_size} "
                f"pixels to {side:.0f}; {LARGEST_IMAGE} is the limit: lower it or --image_size"
            )

    @property
    def attended(self) -> tuple[int, ...]:
        """The numbers of the blocks with attention."""
        return tuple(map(int, numbers_in(self.attention_at))) if self.attention != "none" else ()

    @property
    def scaling(self) -> tuple[float, float, float]:
        """How many times the published depth, width and image side the network has."""
        if self.compound_scale:
            depth, width, side = (factor**self.compound_scale for factor in COMPOUND)
            return depth, width, side
        return self.depth, self.width, 1.0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the training images in pixels, each for an equal part of the run."""
        return tuple(int(size) for size in (self.image_sizes or str(self.image_size)).split(","))

    def folder(self, flag: str) -> Path:
        """The folder of `flag`: log_dir, snapshot_dir or plot_dir."""
        names = {"log_dir": "log", "snapshot_dir": SNAPSHOTS, "plot_dir": PLOTS}
        given = getattr(self, flag)
        return Path(self.run_dir) / names[flag] if given is None else Path(given)

    @property
    def smoothing(self) -> float:
        """The label smoothing of the training loss."""
        if self.label_smoothing is None:
            return 0.0 if self.teacher else SMOOTHING
        return self.label_smoothing

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each step that --augment full adds to light."""
        replaced = REPLACED if self.auto_augment != "none" else ()
        defaults = PROBABILITIES | dict.fromkeys(replaced, 0.0)
        chosen = {step: (getattr(self, step), self.augment_p, defaults[step]) for step in defaults}
        return {step: next(p for p in given if p is not None) for step, given in chosen.items()}

    @property
    def dropouts(self) -> tuple[float, float, float, float]:
        """The dropout rates of the four blocks."""
        rates = numbers_in(self.dropout)
        return rates * 4 if len(rates) == 1 else rates

    @property
    def eval_batch_size(self) -> int:
        """Images per evaluation batch: one part of --accumulate, to need no more memory than it."""
        return (self.batch_size or BATCH_SIZE) // self.accumulate

    @property
    def keeps_best(self) -> bool:
        """Whether the run keeps best_model.pth: asked for, or needed by the report."""
        return self.save_best or self.select == "best"


FLAGS: dict[str, Field] = {spec.name: spec for spec in fields(Settings)}
# The flags that change the result of a run: the others say where files lie or what is drawn.
OF_THE_RESULT = tuple(name for name in FLAGS if FLAGS[name].metadata["on_resume"] != "any")

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def value_type(spec: Field) -> type:
    """Returns the type of a field's values: int for a field of type `int | None`."""
    return (typing.get_args(spec.type) or (spec.type,))[0]


def numbers_in(text: str) -> tuple[float, ...]:
    """The numbers of a list such as "0.1,0.2". Raises `ValueError` for other text."""
    return tuple(float(number) for number in text.split(","))


def _check_numbers(spec: Field, value: Any) -> None:
    """Raises `UserError` unless `value` is a number, or a list of as many as the field takes."""
    counts, within = spec.metadata["numbers"], spec.metadata["within"]
    try:
        found = numbers_in(str(value))
    except (TypeError, ValueError):
        found = ()
    if len(found) not in counts or not all(number in within for number in found):
        raise UserError(
            f"--{spec.name} {value!r} is not a list of {' or '.join(map(str, counts))} numbers in "
            f"{within.text}; write it like {spec.default}"
        )


def check_value(spec: Field, value: Any) -> None:
    """Raises `UserError` unless `value` has the type of the field and is allowed there."""
    if value is None and spec.default is None:
        return
    if spec.metadata["numbers"]:
        _check_numbers(spec, value)
        return
    kind = value_type(spec)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"--{spec.name} {value!r} is not {_TYPE_NAMES[kind]}")
    choices, within = spec.metadata["choices"], spec.metadata["within"]
    if choices and value not in choices:
        raise UserError(f"--{spec.name} {value!r} is not one of {', '.join(choices)}")
    # A whole number can be too large for a float.
    if within and not (abs(value) <= sys.float_info.max and value in within):
        shown = f"{value:g}" if isinstance(value, float) else str(value)[:30]
        raise UserError(
            f"--{spec.name} {shown} is out of range; use a finite number in {within.text}"
        )
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise UserError(
            f"--{spec.name} is empty or holds a null character; give it a value or leave it out"
        )


def changed_settings(before: Settings, now: Settings) -> tuple[list[str], list[str]]:
    """Compares the settings of a run (`before`) with those of its resumption (`now`).

    Returns the allowed changes and the forbidden ones, each as text such as "lr 0.1 -> 0.2".
    """
    allowed: list[str] = []
    forbidden: list[str] = []
    for name, spec in FLAGS.items():
        old, new, rule = getattr(before, name), getattr(now, name), spec.metadata["on_resume"]
        if old != new:
            fits = rule == "any" or (rule == "larger" and new > old)
            (allowed if fits else forbidden).append(f"{name} {old} -> {new}")
    return allowed, forbidden


def without_effect(settings: Settings) -> list[str]:
    """Returns a sentence for each flag that was given but does nothing with the other flags."""
    full, auto = settings.augment == "full", settings.auto_augment != "none"
    replaced = {step for step in REPLACED if full and auto and not settings.probabilities[step]}
    full_steps = (
        *("augment_p", "affine_p", "hole_p", "jitter_p"),
        *("shift", "scale", "degrees", "hole", "jitter"),
    )
    needs = (  # (what the flags need, whether it is there, the flags)
        ("--augment full", full, full_steps),
        ("--affine_p", "affine_p" not in replaced, ("shift", "scale", "degrees")),
        ("--jitter_p", "jitter_p" not in replaced, ("jitter",)),
        ("--mixup or --cutmix", settings.mixup + settings.cutmix > 0, ("mix_p",)),
        ("--augment full or light", settings.augment != "none", ("pad",)),
        ("--augment full or light", settings.augment != "none" or auto, ("border",)),
        (
            "--augment_engine albumentations",
            settings.augment_engine == "albumentations",
            ("num_workers",),
        ),
        ("--attention", settings.attention != "none", ("attention_at",)),
        ("--optimizer muon", settings.optimizer == "muon", ("muon_lr", "muon_momentum")),
        ("--amp", settings.amp, ("amp_dtype",)),
        ("--dataset cifar10 or cifar100", settings.dataset.startswith("cifar"), ("data_url",)),
        ("--dataset folder", settings.dataset == "folder", ("skip_bad_images", "test_fraction")),
        ("--snapshot_freq", settings.snapshot_freq > 0, ("keep_snapshots",)),
        ("--plot_training", settings.plot_training, ("plot_freq",)),
        ("--weight_decay", settings.weight_decay > 0, ("decay_norms",)),
        ("--resume", settings.resume is not None, ("resume_override",)),
    )
    return [
        f"--{name} has no effect without {needed}"
        for needed, there, names in needs
        for name in names
        if not there and getattr(settings, name) != FLAGS[name].default
    ]


def settings_from_dict(values: dict[str, Any]) -> Settings:
    """Makes settings from the copy in a snapshot; ignores names that this version does not know.

    Raises `UserError` if a value does not fit.
    """
    known = {name: value for name, value in values.items() if name in FLAGS}
    if "augment" in known and "pad" not in known and known.get("augment_p") is None:
        known["augment_p"] = 0.5  # the default until --pad came
    return Settings(**known)
