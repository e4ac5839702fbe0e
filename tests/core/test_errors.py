from hypothesis import given
from hypothesis import strategies as st

from cifarnet.core.errors import RunError, UserError, did_you_mean, printable


@given(st.text())
def test_messages_are_one_printable_line_without_loss(text):
    shown = printable(text)
    assert shown.isprintable()
    assert str(UserError(text)) == shown
    assert printable(shown) == shown


def test_exit_codes():
    assert UserError.exit_code == 2
    assert RunError.exit_code == 1


def test_the_closest_word_is_suggested_if_one_is_close():
    assert did_you_mean("epohcs", ["epochs", "lr"]) == "did you mean epochs?"
    assert did_you_mean("zzz", ["epochs", "lr"]) == ""
