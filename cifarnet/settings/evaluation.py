"""Settings of the evaluation: which weights, how often, and what is drawn."""

from dataclasses import dataclass

from cifarnet.settings.flags import Group, flag

TTA = ("none", "flip", "shift")  # test-time augmentation; the first is the default


@dataclass(frozen=True)
class EvaluationSettings(Group):
    """What is measured, and what is drawn."""

    # fmt: off
    evaluate: str = flag("raw",
        "Weights used for accuracies, the best model and the report. ema: the averaged weights "
        "of --ema_decay.",
        choices=("raw", "ema"))
    eval_freq: int = flag(1,
        "Epochs between evaluations; the last epoch is always evaluated. 0: only the last one.",
        within="[0, 1000000]")
    select: str = flag("last",
        "Model that the report describes. best also keeps best_model.pth, like --save_best.",
        choices=("last", "best"), on_resume="any")
    plot_training: bool = flag(True,
        "Draw training_curves.png and learning_rate_schedule.png.",
        on_resume="any")
    plot_evaluation: bool = flag(True,
        "Draw confusion_matrix.png and class_metrics.png.",
        on_resume="any")
    report: bool = flag(True,
        "Write report.html: one page with the figures, the curves and the misclassified images.",
        on_resume="any")
    plot_freq: int = flag(50,
        "Epochs after which the curves are drawn again during the run. 0: only at the end.",
        within="[0, 1000000]", on_resume="any")
    # fmt: on
