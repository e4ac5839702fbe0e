"""The images that only one of two runs predicts correctly."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cifarnet.comparing.past_runs import PastRun
from cifarnet.comparing.run_files import read_predictions
from cifarnet.core.errors import UserError, printable

MOST = 24  # images of each run


class Mistake(NamedTuple):
    """An image that one run predicts wrongly and the other correctly."""

    image: str  # as in predictions.csv
    true: str
    predicted: str  # by the run that is wrong
    p_predicted: float
    p_true: float  # of the run that is right


class Disagreement(NamedTuple):
    """The images on which only the run `right` is right: how many, and `MOST` of them at most.

    The most confident mistakes of the run `wrong` come first.
    """

    right: str
    wrong: str
    count: int
    mistakes: list[Mistake]


class Disagreements(NamedTuple):
    """What the page shows of them: PNG files in base64 by image, or why there are none."""

    groups: Sequence[Disagreement] = ()
    pictures: Mapping[str, str] = MappingProxyType({})
    no_pictures: str = ""


def disagreements(one: PastRun, other: PastRun) -> list[Disagreement]:
    """Two disagreements of two runs with predictions; none if they were tested on other images.

    Raises `UserError` for a file of another form.
    """
    answers = [read_predictions(run.predictions) for run in (one, other)]
    truths = [{image: row["true"] for image, row in rows.items()} for rows in answers]
    if truths[0] != truths[1]:
        return []
    return [
        _disagreement((one, answers[0]), (other, answers[1])),
        _disagreement((other, answers[1]), (one, answers[0])),
    ]


Answers = dict[str, dict[str, str]]  # the rows of predictions.csv by image


def _disagreement(right: tuple[PastRun, Answers], wrong: tuple[PastRun, Answers]) -> Disagreement:
    mistakes = []
    for image, row in right[1].items():
        other = wrong[1][image]
        if row["predicted"] == row["true"] != other["predicted"]:
            shares = (_share(each, run) for each, (run, _) in ((other, wrong), (row, right)))
            mistakes.append(Mistake(image, row["true"], other["predicted"], *shares))
    mistakes.sort(key=lambda mistake: -mistake.p_predicted)
    names = (printable(run.name) for run, _ in (right, wrong))
    return Disagreement(*names, len(mistakes), mistakes[:MOST])


def _share(row: dict[str, str], run: PastRun) -> float:
    try:
        return float(row["probability_predicted"])
    except ValueError:
        raise UserError(
            f"{run.predictions} has a probability that is not a number; write it again with "
            f"evaluate.py"
        ) from None
