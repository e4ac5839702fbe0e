"""Loads a trained model by its name."""

from cifarnet.checkpoints.paths import resolve_model_path
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.checkpoints.trained import TrainedModel, read_weights
from cifarnet.core.errors import UserError


def load_trained(name: str) -> TrainedModel:
    """The trained model `name`: a result, a snapshot (.pth), a weights file or a hub folder.

    Of a snapshot it takes the weights that the run evaluates. Raises `UserError`.
    """
    path = resolve_model_path(name)
    if path.suffix == ".pth":
        return read_snapshot(path).trained()
    if path.suffix == ".onnx":
        raise UserError(
            f"{path}: only predict.py and evaluate.py read an ONNX file; name the snapshot or the "
            f"weights that it was made from"
        )
    return read_weights(path, name)
