"""McNemar's test: whether two runs differ by more than chance, image by image."""

from scipy.stats import binomtest

from cifarnet.comparing.past_runs import PastRun
from cifarnet.comparing.run_files import read_predictions


def mcnemar(one: PastRun, other: PastRun) -> str:
    """Compares two runs with predictions by McNemar's exact test; returns one line of text.

    By chance alone, each run would be right on half of the images on which only one of them is
    right (binomial, two-sided). McNemar 1947, doi 10.1007/BF02295996. Raises `UserError`.
    """
    (first_true, first_right), (second_true, second_right) = map(_answers, (one, other))
    if first_true != second_true:
        return (
            f"McNemar's test: refused, because the predictions.csv of {one.name} and {other.name} "
            f"are of different images; evaluate both on one data set"
        )
    names = [
        f"{run.name} ({run.predicted_by})" if run.predicted_by else run.name for run in (one, other)
    ]
    first, second = len(first_right - second_right), len(second_right - first_right)
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    shares = [f"{len(right) / len(first_true):.2%}" for right in (first_right, second_right)]
    return (
        f"McNemar's test on the {len(first_true):,} images in both predictions.csv: only "
        f"{names[0]} is right on {first}, only {names[1]} on {second}; p = {p:.3g} (exact, "
        f"two-sided); top-1 {shares[0]} and {shares[1]}"
    )


def _answers(run: PastRun) -> tuple[dict[str, str], set[str]]:
    """The true class by image, and the images that `run` predicts correctly."""
    rows = read_predictions(run.predictions)
    true = {image: row["true"] for image, row in rows.items()}
    return true, {image for image, row in rows.items() if row["true"] == row["predicted"]}
