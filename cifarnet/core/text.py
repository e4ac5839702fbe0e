"""Names as text."""

import unicodedata


def composed(name: str) -> str:
    """`name` in Unicode's composed form (NFC). macOS decomposes: its "é" has two characters."""
    return unicodedata.normalize("NFC", name)
