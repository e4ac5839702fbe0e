"""Which images report.html shows, and their pictures as the tiles of one sheet."""

import io
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cifarnet.reporting.label_issues import ValidationImages, label_issues
from cifarnet.reporting.predictions import Predictions

MOST = 24  # images of a cell of the confusion matrix, and of each list
UNSURE = 0.9  # the least confident hits are below this probability
LARGEST = 64  # pixels: the side of a tile at most
COLUMNS = 40  # tiles side by side


class Choice(NamedTuple):
    """The images to show. The lists hold positions in `images`."""

    images: np.ndarray  # int64 [K]: indices of images, by cell, the most confident first
    per_cell: int  # no cell has more images than this, `hits` apart
    mistakes: list[int]  # the most confident mistakes, the most confident first
    hits: list[int]  # the least confident hits, the least confident first
    doubts: list[int]  # the most doubtful labels, the most doubtful first


def choose(predictions: Predictions, room: int) -> Choice:
    """The most confident images of each cell of the confusion matrix: up to `MOST`, `room` in all.
    If `room` is too small, all cells get fewer. The lists are always complete."""
    true, predicted, p = predictions.true, predictions.predicted, predictions.p_predicted
    cells = true * (1 + max(true.max(), predicted.max())) + predicted
    order = np.lexsort((-p, cells))
    ordered = cells[order]
    rank = np.empty(len(order), dtype=np.int64)  # in its cell, from 0
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    counts = np.bincount(cells)
    by_rank = np.lexsort((-counts[cells], rank))[:room]  # larger cells first
    full = MOST if room >= len(true) else rank[by_rank].max(initial=0)  # of the last, some lack
    taken = by_rank[rank[by_rank] < min(MOST, max(1, full))]

    wrong = np.flatnonzero(true != predicted)
    right = np.flatnonzero(true == predicted)
    mistakes = wrong[np.argsort(-p[wrong], kind="stable")][:MOST]
    hits = right[np.argsort(p[right], kind="stable")][:MOST]
    hits = hits[p[hits] < UNSURE]
    wanted = np.zeros(len(true), dtype=bool)
    doubts = label_issues(predictions).images[:MOST]
    wanted[np.concatenate([taken, mistakes, hits, doubts])] = True
    images = order[wanted[order]]
    place = {image: at for at, image in enumerate(images.tolist())}
    lists = ([place[image] for image in listed.tolist()] for listed in (mistakes, hits, doubts))
    return Choice(images, int(rank[taken].max(initial=-1)) + 1, *lists)


def doubtful(validation: ValidationImages) -> tuple[np.ndarray, list[list[Any]]]:
    """Images uint8 [K,3,S,S] with the most doubtful labels, up to `MOST`, and their captions."""
    images, names, predictions = validation
    doubts = label_issues(predictions).images[:MOST]
    return images[doubts], captions(predictions, doubts, names[doubts])


def captions(predictions: Predictions, chosen: np.ndarray, names: np.ndarray) -> list[list[Any]]:
    """What the page's script needs to know of each of the images `chosen`, with its name."""
    p = predictions
    parts = (p.true, p.predicted, p.runner_up, p.p_predicted, p.p_runner_up)
    columns = (np.round(values[chosen], 4).tolist() for values in parts)
    return [list(row) for row in zip(names.tolist(), *columns, strict=True)]


def tile_side(size: int) -> int:
    """The side of the tiles for images of `size` pixels."""
    return min(size, LARGEST)


def sheet(images: np.ndarray) -> bytes:
    """A JPEG file with `images` uint8 [K,3,S,S], K > 0, as tiles, `COLUMNS` in a row.

    JPEG needs a quarter of PNG's bytes for photographs. It works in blocks of 8 pixels. Sides are
    multiples of 8, so no tile shows in the next one.
    """
    count, channels, size, _ = images.shape
    side, rows = tile_side(size), math.ceil(count / COLUMNS)
    if side < size:
        smaller = F.interpolate(torch.from_numpy(images), side, mode="bilinear", antialias=True)
        images = smaller.numpy()
    whole = np.zeros((rows * COLUMNS, channels, side, side), dtype=np.uint8)
    whole[:count] = images
    grid = whole.reshape(rows, COLUMNS, channels, side, side).transpose(0, 3, 1, 4, 2)
    content = io.BytesIO()
    pixels = np.ascontiguousarray(grid).reshape(rows * side, COLUMNS * side, channels)
    Image.fromarray(pixels).save(content, "JPEG", quality=90, subsampling=0)
    return content.getvalue()
