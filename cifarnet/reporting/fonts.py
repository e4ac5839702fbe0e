"""The fonts of figures: which installed font draws a letter, and escapes where there is none."""

import functools

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from cifarnet.core.errors import printable
from cifarnet.core.log import print_line

FONT = "DejaVu Sans"  # comes with matplotlib


def set_fonts(figure: Figure) -> Figure:
    """Gives all texts of `figure` the fonts that their letters need; returns `figure`."""
    texts = figure.findobj(Text)
    fonts = {FONT: None} | {font_of(letter): None for text in texts for letter in text.get_text()}
    for text in texts:
        text.set_fontfamily([name for name in fonts if name])
    return figure


def drawable(text: str) -> str:
    """`text`, with escapes for letters that no installed font has: they would be empty boxes."""
    missing = [letter for letter in printable(text) if not font_of(letter)]
    if missing:
        warn_of_missing_letters()
    escapes = {ord(letter): letter.encode("unicode_escape").decode() for letter in missing}
    return printable(text).translate(escapes)


@functools.cache
def warn_of_missing_letters() -> None:
    """Prints once that figures show escapes."""
    print_line(
        "warning: no installed font has some letters of these names, so the figures show their "
        "numbers (\\uXXXX); install a font that has them, such as Noto"
    )


@functools.cache
def font_of(letter: str) -> str | None:
    """The name of the first installed font that can draw `letter`; None: there is none."""
    if letter.isascii() or ord(letter) in letters_of(font_manager.findfont(FONT)):
        return FONT
    for name in sorted({entry.name for entry in font_manager.fontManager.ttflist}):
        stand_in = "lastresort" in name.lower().replace(" ", "")  # it has a box for each letter
        if not stand_in and ord(letter) in letters_of(font_manager.findfont(name)):
            return name
    return None


@functools.cache
def letters_of(path: str) -> frozenset[int]:
    """The code points that the font file `path` can draw; none where it is of no use."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):  # removed or damaged since matplotlib listed it
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()  # else: bitmaps
