"""The class activation maps in report.html, as evaluate.py writes them; in a browser."""

import math
from pathlib import Path

import numpy as np
from support.browser import fetched, open_page
from support.commands import from_folder
from support.pages import words
from support.random_models import random_model
from torch.nn.functional import interpolate

from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.checkpoints.trained import write_weights
from cifarnet.images.folder import read_folder
from cifarnet.inference.class_maps import class_maps
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.settings.data import DataSettings

REDNESS = """
return [...document.querySelectorAll('#cell-pictures figure')].map(figure => {
  const canvas = figure.querySelector('canvas');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const redness = [...Array(data.length / 4).keys()].map(i => data[4 * i] - data[4 * i + 2]);
  return [Number(figure.dataset.index), redness];
})
"""
CHOOSE = """
const choice = document.querySelector('.map-choice');
choice.value = arguments[0];
choice.dispatchEvent(new Event('change'));
return [...document.querySelectorAll('.map-choice')].map(other => other.value);
"""


def evaluate(command, weights: Path, tree: Path) -> Path:
    places = (*from_folder(tree), "--plot_dir", "plots")
    assert command("evaluate", "--pretrained", weights, *places, "--no-plot_evaluation").code == 0
    return Path("plots/report.html")


def test_the_maps_of_a_chosen_cell_are_those_of_the_network(command, trained, browser):
    open_page(browser, evaluate(command, trained.weights, trained.tree))
    decoded = "Promise.all([...document.images].map(image => image.decode()))"
    browser.execute_async_script(f"{decoded}.then(() => setTimeout(arguments[0], 100))")
    cells = browser.find_elements("css selector", "#matrix td button")
    cells[-1].click()

    classifier = TorchClassifier(load_trained(str(trained.weights)))
    settings = DataSettings(dataset="folder", data_dir=str(trained.tree))
    images = read_folder(settings, print).test.images
    ranked = classifier.logits(images).argsort(dim=1, descending=True)[:, :2]
    maps = class_maps(classifier, images, ranked)
    for view in (1, 2):
        assert set(browser.execute_script(CHOOSE, str(view))) == {str(view)}
        shown = browser.execute_script(REDNESS)
        assert shown
        for index, redness in shown:
            side = math.isqrt(len(redness))
            expected = interpolate(maps[index, view - 1][None, None], side, mode="bilinear")
            assert np.corrcoef(redness, expected.flatten().numpy())[0, 1] > 0.9
    assert fetched(browser) == []


def test_other_networks_say_why_they_have_none(command, trained, tmp_path):
    residual = tmp_path / "residual.safetensors"
    model = random_model(network="residual", classes=("bar", "disc", "star"))
    write_weights(model, residual)
    page = evaluate(command, residual, trained.tree)
    assert "No class activation maps: residual takes the maximum" in words(page.read_text())
    assert 'class="map-choice"' not in page.read_text()
