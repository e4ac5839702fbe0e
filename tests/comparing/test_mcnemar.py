import pytest
from support.runs import leave_predictions, leave_run, runs_of

from cifarnet.comparing.mcnemar import mcnemar
from cifarnet.core.errors import UserError


def runs_with(folder, one: str, other: str, image="{}"):
    for name, right in (("one", one), ("other", other)):
        leave_predictions(leave_run(folder / name), right, image if name == "other" else "{}")
    return runs_of(folder / "one", folder / "other")


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        ("yyyyyy", "nnnnnn", 2 * 0.5**6),
        ("nnnyy", "yyyny", 2 * (1 + 4) * 0.5**4),
        ("yn", "ny", 1.0),
        ("yy", "yy", 1.0),
    ],
)
def test_the_line_names_counts_and_probability(tmp_path, one, other, p):
    only, other_only = (
        sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((one, other), (other, one))
    )
    line = mcnemar(*runs_with(tmp_path, one, other))
    start = f"McNemar's test on the {len(one)} images in both predictions.csv: only one is right on"
    assert line.startswith(f"{start} {only}, only other on {other_only}; ")
    assert f"p = {p:.3g} " in line
    shares = [f"{right.count('y') / len(right):.2%}" for right in (one, other)]
    assert line.endswith(f"top-1 {shares[0]} and {shares[1]}")


def test_predictions_that_do_not_fit_are_refused(tmp_path):
    assert "refused" in mcnemar(*runs_with(tmp_path, "yyn", "yyn", "test/{}.png"))
    one, other = runs_with(tmp_path, "yy", "yy", "same")
    with pytest.raises(UserError, match="names no image, or one twice"):
        mcnemar(one, other)
    one.predictions.write_text("image,true\n1,a\n")
    with pytest.raises(UserError, match="lacks the columns predicted"):
        mcnemar(one, other)
