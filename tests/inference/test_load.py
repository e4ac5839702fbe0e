from pathlib import Path

import pytest
from support.random_models import random_model

from cifarnet.checkpoints.trained import write_weights
from cifarnet.inference.load import load_classifier


@pytest.mark.parametrize(("amp", "expected"), [(None, "01"), (True, "11"), (False, "00")])
def test_each_network_is_autocast_as_it_was_trained(tmp_path, amp, expected):
    """Unless the caller decides; test_model.py loads all kinds of names."""
    names = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for trained_with, name in enumerate(names):
        write_weights(random_model(width=0.1, amp=bool(trained_with)), Path(name))
    parts = load_classifier(names, amp=amp).parts
    assert "".join(str(int(part.amp)) for part in parts) == expected
