from matplotlib import font_manager
from matplotlib.figure import Figure
from support.reports import make_report

import plots
from cifarnet.reporting import fonts


def test_another_font_draws_what_the_usual_one_lacks(tmp_path, capsys):
    """STIXGeneral comes with matplotlib. A missing glyph would be a warning, and fail here."""
    usual, other = (
        font_manager.get_font(font_manager.findfont(name)).get_charmap()
        for name in (fonts.FONT, "STIXGeneral")
    )
    letter = next(chr(n) for n in sorted(set(other) - set(usual)) if chr(n).isalpha())
    figure = Figure()
    figure.suptitle(f"plain {letter}")
    fonts.set_fonts(figure).savefig(tmp_path / "figure.png")
    assert fonts.drawable(letter) == letter
    plots.confusion_matrix(make_report((letter, "plain")), tmp_path / "figure.png")
    assert capsys.readouterr().out == ""


def test_letters_that_no_font_has_are_escapes_with_one_warning(tmp_path, monkeypatch, capsys):
    ours = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", ours)  # whatever is installed here
    names = ("고양이", "naïve 猫", "\u2028 is no \u2028", "😀\U0001f9a9")
    shown = [fonts.drawable(name) for name in names]
    assert shown[:3] == ["\\uace0\\uc591\\uc774", "naïve \\u732b", "\\u2028 is no \\u2028"]
    report = make_report(names)
    plots.class_metrics(report, tmp_path / "figure.png")
    plots.confusion_matrix(report, tmp_path / "figure.png")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: no installed font has some letters")
