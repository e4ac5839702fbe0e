"""The test images that a past run names in its predictions.csv, as pictures."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cifarnet.comparing.disagreements import Disagreement, Mistake
from cifarnet.comparing.past_runs import PastRun
from cifarnet.core.errors import UserError
from cifarnet.images.cifar import CIFAR, is_at_hand
from cifarnet.images.pictures import read_images
from cifarnet.settings import settings_from_dict
from cifarnet.settings.data import DataSettings
from data import load_splits


def run_pictures(
    runs: Sequence[PastRun], groups: Iterable[Disagreement], data_dir: str | None
) -> dict[str, str]:
    """The pictures of the images in `groups`, as PNG files in base64, by the name of the image.

    They are looked for where the first of `runs` had its data set, then where the next one had it;
    or in `data_dir`. A picture that cannot be read is left out. Raises `UserError` if none can.
    """
    mistakes = [mistake for group in groups for mistake in group.mistakes]
    problem = None
    for run in runs:
        data = settings_from_dict(run.record.settings).data
        data = replace(data, data_dir=data_dir or data.data_dir)
        try:
            return _pictures(data, mistakes)
        except UserError as failure:
            problem = problem or failure
    raise problem


def _pictures(data: DataSettings, mistakes: Sequence[Mistake]) -> dict[str, str]:
    read = _from_files if data.is_folder else _from_test_set
    return {image: _png(pixels) for image, pixels in read(data, mistakes).items()}


def _from_files(data: DataSettings, mistakes: Sequence[Mistake]) -> dict[str, np.ndarray]:
    """Reads the files themselves; predictions.csv names them by their paths in --data_dir."""
    names = [mistake.image for mistake in mistakes]
    outcomes = list(read_images([Path(data.data_dir) / name for name in names], data.image_size))
    problems = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
    if problems and len(problems) == len(outcomes):
        raise problems[0]
    pairs = zip(names, outcomes, strict=True)
    return {name: read[0] for name, read in pairs if not isinstance(read, UserError)}


def _from_test_set(data: DataSettings, mistakes: Sequence[Mistake]) -> dict[str, np.ndarray]:
    """Reads the whole data set; predictions.csv numbers its test images. Downloads nothing."""
    which = CIFAR.get(data.dataset)
    if which and not is_at_hand(which, Path(data.data_dir)):
        raise UserError(f"{data.data_dir} does not hold {which.title}; name its --data_dir")
    test = load_splits(replace(data, limit_test=0), lambda message: None).test
    pictures = {}
    for image, true, *_ in mistakes:
        index = int(image) if image.isdecimal() else len(test)
        if index >= len(test) or test.classes[test.labels[index]] != true:
            raise UserError(
                f"the test images of {data.dataset} are not those of predictions.csv; evaluate "
                f"the runs again"
            )
        pictures[image] = test.images[index].numpy()
    return pictures


def _png(pixels: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
