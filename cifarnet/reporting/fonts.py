"""The fonts of figures: which installed font draws a letter, and escapes where there is none."""

import functools
import logging
from collections.abc import Collection

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from cifarnet.core.errors import printable

FONT = "DejaVu Sans"  # comes with matplotlib
# It warns of each installed font without a normal weight.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def set_fonts(figure: Figure) -> Figure:
    """Gives all texts of `figure` the fonts that their letters need; returns `figure`."""
    texts = figure.findobj(Text)
    fonts = fonts_of("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_fontfamily(list(dict.fromkeys([FONT, *fonts.values()])))
    return figure


def drawable(text: str) -> str:
    """`text`, with escapes for letters that no installed font has: they would be empty boxes."""
    text = printable(text)
    missing = set(text) - fonts_of(text).keys()
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in missing})


def fonts_of(letters: Collection[str]) -> dict[str, str]:
    """The name of the first installed font that can draw each of `letters`, if there is one."""
    fonts = {letter: FONT for letter in letters if letter.isascii()}
    for name in [FONT, *sorted({entry.name for entry in font_manager.fontManager.ttflist})]:
        missing = set(letters) - fonts.keys()
        stand_in = "lastresort" in name.lower().replace(" ", "")  # it has a box for each letter
        if missing and not stand_in:
            drawn = _letters_in(font_manager.findfont(name))
            fonts |= {letter: name for letter in missing if ord(letter) in drawn}
    return fonts


@functools.cache
def _letters_in(path: str) -> frozenset[int]:
    """The code points that the font file `path` can draw; none where it is of no use."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):  # removed or damaged since matplotlib listed it
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()  # else: bitmaps
