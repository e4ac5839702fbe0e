"""predict.py --explain: images beside the class activation maps of their two best classes."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import plots
from cifarnet.core.errors import RunError, UserError, printable, reason
from cifarnet.core.files import unused_path, write_atomically
from cifarnet.images.pictures import read_image
from cifarnet.inference.class_maps import caution, class_maps, why_no_maps
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.predictor import Predictor, Ranking
from cifarnet.reporting.fonts import drawable, set_fonts
from cifarnet.reporting.map_tiles import MAP_COLORS

SIDE = 320  # pixels: of a picture before it gets its proportions
LONGEST = 50  # letters of a file's name: with the endings at most 255 bytes
FORM = {"format": "png", "dpi": plots.DPI, "bbox_inches": "tight"}
RANKS = ("answer", "second")
COLORS = ListedColormap(np.array(MAP_COLORS[::-1]) / 255)  # of negative and of positive values
LEGEND = "red parts raise the score of the class, blue parts lower it; both maps have one scale"


class Explainer:
    """Writes a PNG file for each picture into `folder`: the picture and two maps.

    Raises `UserError` if the classifier has no exact maps.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        problem = why_no_maps(predictor.classifier)
        if problem:
            raise UserError(f"--explain: {problem}")
        self.classifier: TorchClassifier = predictor.classifier
        self.device, self.folder = predictor.device, folder
        self.failure: RunError | None = None  # the first file that could not be written

    def write(self, path: str, ranking: Ranking) -> Path | None:
        """Explains the two best of `ranking` for the image `path`; returns the new file, or None
        if it cannot be written: the answers do not depend on it."""
        target = unused_path(self.folder / f"{printable(Path(path).stem)[:LONGEST]}.png")
        try:
            maps = self._maps(Path(path), [name for name, _ in ranking[:2]])
            figure = _figure(read_image(Path(path), SIDE), maps, ranking, self._about(path))
            write_atomically(target, lambda file: figure.savefig(file, **FORM))
        except Exception as problem:  # of the disk, the image, and any of matplotlib
            failure = f"--explain {target}: cannot write it ({reason(problem)})"
            self.failure = self.failure or RunError(failure)
            return None
        return target

    def _maps(self, path: Path, names: list[str]) -> np.ndarray:
        """The maps float32 [2,h,w] of the classes `names`."""
        pixels, _ = read_image(path, self.classifier.image_size)
        pixels = torch.from_numpy(pixels)[None].to(self.device)
        labels = torch.tensor([[self.classifier.classes.index(name) for name in names]])
        return class_maps(self.classifier, pixels, labels.to(self.device))[0].cpu().numpy()

    def _about(self, path: str) -> str:
        note = caution(self.classifier.infos[0])
        return f"{path}, network {self.classifier.source}" + (f"\n{note}" if note else "")


@mpl.rc_context(plots.STYLE)
def _figure(
    read: tuple[np.ndarray, tuple[int, int]], maps: np.ndarray, ranking: Ranking, about: str
) -> Figure:
    """The picture in its proportions and, on its grey copy, the maps [2,h,w] in one scale."""
    pixels, (width, height) = read
    shape = {"extent": (0, width, height, 0), "interpolation": "bilinear"}
    figure = Figure(figsize=(plots.WIDTH, 0.9 + 2.6 * min(height / width, 3)), layout="compressed")
    figure.suptitle("\n".join(drawable(line) for line in about.split("\n")), fontsize=9)
    figure.supxlabel(LEGEND, fontsize=9)
    panels = figure.subplots(1, 3)
    for axes in panels:
        axes.set_axis_off()
    panels[0].imshow(pixels.transpose(1, 2, 0), **shape)
    panels[0].set_title("image")
    limit = np.abs(maps).max() or 1
    for axes, values, rank, (name, share) in zip(panels[1:], maps, RANKS, ranking, strict=False):
        axes.imshow(pixels.mean(0), cmap="gray", vmin=0, vmax=255, **shape)
        strength = np.abs(values) / limit
        axes.imshow(values, cmap=COLORS, vmin=-limit, vmax=limit, alpha=strength, **shape)
        axes.set_title(f"{rank}: {drawable(name)} {share:.1%}")
    return set_fonts(figure)
