"""Settings of the evaluation: which weights, how often, and what is drawn."""

from dataclasses import dataclass

from cifarnet.settings.flags import Group, flag

TTA = ("none", "flip", "shift")  # test-time augmentation; the first is the default
VALIDATION = object()  # of evaluate.py --calibrate without a value: the run's validation images


@dataclass(frozen=True)
class EvaluationSettings(Group):
    """What is measured, and what is drawn."""

    # fmt: off
    evaluate: str = flag("raw", choices=("raw", "ema"), help=
        "Weights used for accuracies, the best model and the report. raw: the trained weights. "
        "ema: the averaged weights of --ema_decay.")
    eval_freq: int = flag(1, within="[0, 1000000]", help=
        "Evaluate every N epochs, and after the last one. 0: only after the last one.")
    select: str = flag("last", choices=("last", "best"), on_resume="any", help=
        "Model that the report describes. best also keeps best_model.pth, like --save_best.")
    plot_training: bool = flag(True, on_resume="any", help=
        "Draw training_curves.png and learning_rate_schedule.png.")
    plot_evaluation: bool = flag(True, on_resume="any", help=
        "Draw confusion_matrix.png and class_metrics.png.")
    report: bool = flag(True, on_resume="any", help=
        "Write report.html: one page with the figures, the curves and the misclassified images.")
    plot_freq: int = flag(50, within="[0, 1000000]", on_resume="any", help=
        "Draw the curves again every N epochs. 0: only at the end.")
    # fmt: on
