"""The map over the dropped picture: computed in the browser, equal to that of torch."""

import base64

import numpy as np
import torch
from PIL import Image
from support.browser import console, fetched, open_page
from support.random_models import noise, random_model

from cifarnet.export.page import write_page
from cifarnet.inference.class_maps import class_maps
from cifarnet.inference.classifier import TorchClassifier

ASK = """
const [text, done] = arguments;
const pixels = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
classify({ pixels }).then(({ logits, maps }) => done([logits, maps.map((map) => [...map.data])]));
"""
RED_AND_BLUE = """
const canvas = document.getElementById("map"), { width, height } = canvas;
const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
const places = [...Array(width * height).keys()];
return [0, 2].map((c) => places.map((i) => data[4 * i + c] * data[4 * i + 3]));
"""


def wait(driver, condition) -> None:
    from selenium.webdriver.support.wait import WebDriverWait  # not installed on every machine

    WebDriverWait(driver, 60, 0.05).until(lambda _: condition())


def opacity(driver) -> float:
    return float(driver.find_element("id", "map").value_of_css_property("opacity"))


def test_the_maps_are_those_of_torch_and_lie_over_the_picture(browser, tmp_path):
    model, pixels = random_model(), noise(1)
    write_page(model.build(), model, tmp_path / "page.html")
    open_page(browser, tmp_path / "page.html")
    text = base64.b64encode(pixels.numpy().tobytes()).decode()
    logits, maps = browser.execute_async_script(ASK, text)
    order = torch.tensor(logits).argsort(descending=True)
    expected = class_maps(TorchClassifier(model), pixels, order[None])[0]
    torch.testing.assert_close(torch.tensor(maps), expected.flatten(1), atol=1e-3, rtol=0)

    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "picture.png"))
    wait(browser, lambda: opacity(browser) > 0.5)
    assert (console(browser), fetched(browser)) == ([], [])
    names = [row.text for row in browser.find_elements("css selector", "#bars .name")]
    for place, choice in enumerate(browser.find_elements("css selector", "[name=map]")):
        choice.click()
        assert browser.find_element("id", "of").text == names[place]
        red, blue = (np.array(channel) for channel in browser.execute_script(RED_AND_BLUE))
        large = expected[place].repeat_interleave(2, 0).repeat_interleave(2, 1).flatten().numpy()
        assert np.corrcoef(red - blue, large)[0, 1] > 0.8
    slider = browser.find_element("id", "strength")
    slider.send_keys("\ue011")  # Home
    assert opacity(browser) == 0


def test_a_network_without_exact_maps_says_so(browser, tmp_path):
    model = random_model(network="residual")
    write_page(model.build(), model, tmp_path / "page.html")
    open_page(browser, tmp_path / "page.html")
    Image.fromarray(noise(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    browser.find_element("id", "file").send_keys(str(tmp_path / "picture.png"))
    body = browser.find_element("tag name", "body")
    wait(browser, lambda: "No map of where it looks" in body.text)
    assert not browser.find_elements("css selector", "[name=map], #strength")
    assert console(browser) == []
