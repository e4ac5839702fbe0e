import sys

import pytest

from cifarnet.core.late import LateModule


def test_a_module_is_imported_when_it_is_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    colorsys = LateModule("colorsys")
    assert "colorsys" not in sys.modules
    assert colorsys.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert "colorsys" in sys.modules
    with pytest.raises(AttributeError):
        _ = colorsys.no_such_function
    with pytest.raises(ModuleNotFoundError):
        _ = LateModule("no_such_module").anything
