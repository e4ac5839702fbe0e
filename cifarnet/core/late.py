"""Late imports: a slow library that few runs need is imported when it is first used."""

import importlib
from typing import Any


class LateModule:
    """Stands for the module `name`, and imports it with the first attribute that is read.

    It is written at the top of a file, like an import: `A = LateModule("albumentations")`. From
    Python 3.15 on, `lazy import` (PEP 810) does the same.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
