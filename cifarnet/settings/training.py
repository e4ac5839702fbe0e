"""Settings of the training: length, optimizer, schedule, loss, and what the run starts from."""

from dataclasses import dataclass

from cifarnet.core.errors import UserError
from cifarnet.settings.flags import Group, flag

SMOOTHING = 0.1  # label smoothing, unless a teacher replaces the labels
BATCH_SIZE = 512  # images; lowered if there are fewer training images


@dataclass(frozen=True)
class TrainingSettings(Group):
    """How the network is trained."""

    # fmt: off
    recipe: str | None = flag(None, unset="off", on_resume="any", help=
        "Read flags from this TOML file. Flags on the command line win.")
    epochs: int = flag(250, within="[1, 1000000]", on_resume="larger", help=
        "Passes over the training images.")
    batch_size: int | None = flag(None,
        "Images per step, over all devices together.",
        within="[1, 1000000]", unset="512, or fewer: see docs/own-images.md")
    accumulate: int = flag(1, within="[1, 1000000]", help=
        "Gradient accumulation: compute the share of each process in this many parts, to save "
        "memory. Batch normalisation then uses the statistics of each part.")
    image_sizes: str | None = flag(None, unset="--image_size throughout", metavar="N,N,...", help=
        "Sizes of the training images in pixels, such as 16,20,24,28,32: each for an equal part "
        "of the run. Evaluation always uses --image_size.")
    optimizer: str = flag("sgd", choices=("sgd", "adamw", "muon"), help=
        "muon: orthogonalised updates for the dense convolutions, sgd for the rest.")
    lr: float = flag(0.1, within="(0, inf)", help=
        "Learning rate of the first batch, or of the first one after the warm-up.")
    min_lr: float = flag(1e-6, within="[0, inf)", help=
        "Learning rate at the end of the schedule.")
    schedule: str = flag("cosine", choices=("cosine", "linear"), help=
        "How the learning rate falls from --lr to --min_lr.")
    schedule_per: str = flag("step", choices=("step", "epoch"), help=
        "When the learning rate falls: after each step, or after each epoch. Per epoch, --min_lr "
        "is the rate that would follow the last epoch.")
    warmup_epochs: int = flag(0, within="[0, 1000000]", help=
        "Epochs of linear warm-up before the schedule.")
    momentum: float = flag(0.9, within="[0, 1)", help=
        "Nesterov momentum of sgd (0: none), first beta of adamw.")
    muon_lr: float = flag(0.1, within="(0, inf)", help=
        "Learning rate of the convolutions that muon updates, instead of --lr.")
    muon_momentum: float = flag(0.6, within="[0, 1)", help=
        "Nesterov momentum of the convolutions that muon updates.")
    weight_decay: float = flag(5e-4, within="[0, inf)", help=
        "L2 penalty; decoupled with adamw. Convolutions that muon updates get none: each row of "
        "their weights is kept at length 1.")
    decay_norms: bool = flag(True,
        "Apply weight decay to normalisation layers and biases too.")
    label_smoothing: float | None = flag(None,
        "Share of each training label that is spread evenly over all classes. The training loss "
        "is computed with the smoothed labels, the test loss without smoothing.",
        within="[0, 1)", unset=f"{SMOOTHING}; 0 with --teacher")
    class_weights: str = flag("none", choices=("none", "balanced"), help=
        "balanced: weight the loss of each image by the inverse frequency of its class, so that "
        "all classes count the same.")
    ema_decay: float = flag(0.0, within="[0, 1)", help=
        "Also keep averaged weights: an exponential moving average with this decay per step. "
        "0: none.")
    max_grad_norm: float = flag(1.0, within="[0, inf)", help=
        "Scale the gradient down to this norm when it is larger. 0: off.")
    teacher: str | None = flag(None, unset="off", metavar="NAME|PATH,...", help=
        "Learn from the predictions of a trained network with the same classes, instead of from "
        "the labels: the name of a result, a .safetensors file or a .pth snapshot. The training "
        "loss is then the divergence from the predictions. Several, separated by commas: learn "
        "from the mean of their logits.")
    teacher_tta: str = flag("none", choices=("none", "flip"), help=
        "flip: learn from the mean of the teacher's logits for an image and for its mirror image. "
        "The teacher then computes each image twice.")
    teacher_epochs: int = flag(0, within="[0, 1000000]", help=
        "Run the teacher in the first N epochs only. Later epochs repeat the augmented images of "
        "those N in turn, with the predictions of the teacher. 0: run it in each epoch.")
    init: str | None = flag(None, unset="off", metavar="NAME|PATH", help=
        "Start from trained weights: the name of a result, a .safetensors file or a .pth "
        "snapshot. Weights that do not match start at random, also those of new classes. "
        "The images are normalised with the statistics of the new data set.")
    seed: int = flag(42, within="[0, 4294967295]", help=
        "Seed of the initial weights, the image order, augmentation, mixing and dropout.")
    # fmt: on

    def check(self) -> None:
        if self.warmup_epochs and self.schedule_per == "epoch":
            raise UserError("--warmup_epochs needs --schedule_per step; remove one of them")
        if self.min_lr > self.lr:
            raise UserError(
                f"--min_lr {self.min_lr:g} is above --lr {self.lr:g}; lower it or raise --lr"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup_epochs {self.warmup_epochs} leaves no epoch of --epochs {self.epochs} "
                f"for the schedule; lower it or raise --epochs"
            )
        without = "label_smoothing" if self.label_smoothing else "class_weights"
        if self.teacher and (self.label_smoothing or self.class_weights != "none"):
            raise UserError(
                f"--teacher replaces the labels, so --{without} does nothing; leave one out"
            )

    @property
    def smoothing(self) -> float:
        """The label smoothing of the training loss."""
        if self.label_smoothing is None:
            return 0.0 if self.teacher else SMOOTHING
        return self.label_smoothing

    @property
    def eval_batch_size(self) -> int:
        """Images per evaluation batch: one part of --accumulate, to need no more memory than it.
        At most 512: one of several processes may evaluate a whole batch."""
        return min(BATCH_SIZE, (self.batch_size or BATCH_SIZE) // self.accumulate)
