from dataclasses import replace

import pytest
from support.random_models import random_model

from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.errors import UserError
from commands.calibration import keep_temperature


def test_a_file_that_has_changed_is_not_calibrated(tmp_path):
    path = tmp_path / "a.safetensors"
    write_weights(random_model(), path)
    before = path.read_bytes()
    former = replace(random_model(), sha256="0" * 64, temperature=2.0)
    with pytest.raises(UserError, match="has changed in the meantime; calibrate it again"):
        keep_temperature(former, path)
    assert path.read_bytes() == before
