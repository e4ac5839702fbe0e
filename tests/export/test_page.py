"""The page that classifies in the browser: its script, and what it shows."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.browser import console, fetched, open_page
from support.exported_pages import KINDS, TOLERANCE, answers, build, write
from support.random_models import noise

from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.export.page import read_page, write_page
from cifarnet.images.digits import read_digits
from cifarnet.images.pictures import to_pixels
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.settings.data import DataSettings

ASK = """
const [text, length, done] = arguments;
const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
(async () => {
  const logits = [];
  for (let i = 0; i < bytes.length; i += length)
    logits.push((await classify({ pixels: bytes.slice(i, i + length) })).logits);
  done(logits);
})().catch((problem) => done(String(problem)));
"""


def logits_of(driver, pixels: torch.Tensor) -> torch.Tensor:
    """The logits that the worker of the open page gives for uint8 [N,3,S,S]."""
    text = base64.b64encode(pixels.numpy().tobytes()).decode()
    return torch.tensor(driver.execute_async_script(ASK, text, pixels[0].numel()))


@torch.inference_mode()
def test_the_browser_computes_what_torch_does(browser, tmp_path):
    for kind in KINDS:
        network, size = build(kind)
        pixels = noise(2, size)
        open_page(browser, write(network, tmp_path, size))
        expected = answers(network, pixels)
        torch.testing.assert_close(logits_of(browser, pixels), expected, atol=TOLERANCE, rtol=0)
    assert (console(browser), fetched(browser)) == ([], [])


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_a_result_gives_the_same_logits_in_the_browser(browser, tmp_path, count):
    model, path = load_trained("long"), tmp_path / "page.html"
    pixels = read_digits(DataSettings(), print).test.images[:count]
    write_page(model.build(), model, path)
    assert path.stat().st_size < 1_500_000
    open_page(browser, path)
    expected = TorchClassifier(model, amp=False).logits(pixels)
    assert len(expected) == count
    torch.testing.assert_close(logits_of(browser, pixels), expected, atol=TOLERANCE, rtol=0)


# --- what the page shows ---

HOSTILE = ("</script><script>document.title='hurt'</script>", "<img src=x onerror=a()>", "&amp;")
SHOWN = "return [document.body.innerText, document.getElementById('seen').toDataURL()]"
MOVE = """
const slider = document.getElementById("threshold");
slider.value = arguments[0];
slider.dispatchEvent(new Event("input"));
"""
DELIVER = """
const [kind, name, type, text] = arguments;
const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], name, { type }));
const options = { bubbles: true, cancelable: true, clipboardData: files, dataTransfer: files };
const make = kind === "paste" ? ClipboardEvent : DragEvent;
document.body.dispatchEvent(new make(kind, options));
"""


def until_it_says(driver, pattern: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait  # not installed on every machine

    says = lambda _: re.search(pattern, driver.find_element("id", "status").text)  # noqa: E731
    WebDriverWait(driver, 60, 0.02).until(says)


def shown(driver) -> tuple[str, np.ndarray]:
    """The text of the page, and the pixels that the network sees: uint8 [3,S,S]."""
    text, address = driver.execute_script(SHOWN)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        return text, np.array(picture.convert("RGB")).transpose(2, 0, 1)


def pictures(folder: Path) -> list[Path]:
    """A small one, a large one that lies on its side, and one that is partly transparent."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [folder / name for name in ("small.png", "large.jpg", "clear.png")]
    coarse.resize((32, 32)).save(paths[0])
    coarse.resize((1200, 701), Image.Resampling.BICUBIC).save(paths[1], quality=95, exif=exif)
    clear = coarse.resize((100, 120), Image.Resampling.BICUBIC)
    clear.putalpha(Image.fromarray(np.tile(np.uint8([[0, 255]]), (120, 50))))
    clear.save(paths[2])
    return paths


@torch.inference_mode()
def test_pictures_are_prepared_as_in_training_and_ranked(browser, tmp_path):
    network, size = build("weighed")
    open_page(browser, write(network, tmp_path, size, classes=HOSTILE))
    for path in pictures(tmp_path):
        browser.find_element("id", "file").send_keys(str(path))
        until_it_says(browser, r"Answered in \d+ ms")
        text, seen = shown(browser)
        with Image.open(path) as picture:
            difference = np.abs(seen - to_pixels(picture, size).astype(int))
        assert difference.max() <= 3, path.name
        assert difference.mean() < 0.5, path.name
        pixels = torch.from_numpy(seen)[None]
        shares = answers(network, pixels).softmax(1)[0]
        first, *others = shares.argsort(descending=True).tolist()
        names = [row.text for row in browser.find_elements("css selector", "#bars .name")]
        assert names == [HOSTILE[label] for label in (first, *others)]
        share = browser.find_element("css selector", "#bars .share").text
        assert float(share.strip("<> %")) == pytest.approx(100 * shares[first].item(), abs=0.1)
        browser.execute_script("tell('')")
    assert browser.title == "What does the image show?"
    assert all(name in text for name in HOSTILE)
    facts = browser.find_element("css selector", "footer").get_attribute("textContent")
    for fact in ("Weighed, ", "trained on pictures, epoch 3", "on its test images: 50.00%"):
        assert fact in facts
    assert (console(browser), fetched(browser)) == ([], [])


def test_pictures_are_dropped_or_pasted_and_other_files_are_named(browser, tmp_path):
    network, size = build("weighed")
    open_page(browser, write(network, tmp_path, size))
    picture = pictures(tmp_path)[0].read_bytes()
    until_it_says(browser, "^The answer appears here")
    for kind in ("drop", "paste"):
        for name, mime, content, answer in (
            ("a.png", "image/png", picture, "Answered in"),
            ("a <b>.txt", "text/plain", b"no picture", "cannot read a <b>.txt as an image"),
        ):
            text = base64.b64encode(content).decode()
            browser.execute_script(DELIVER, kind, name, mime, text)
            until_it_says(browser, answer)
            assert browser.find_element("css selector", "#bars .share").text  # of the picture
    assert (console(browser), fetched(browser)) == ([], [])


@torch.inference_mode()
def test_a_calibrated_network_is_unsure_below_the_threshold(browser, tmp_path):
    network, size = build("weighed")
    pixels, (picture, *_) = noise(2, size), pictures(tmp_path)
    path = write(network, tmp_path, size, temperature=2.5)
    expected = answers(network, pixels) / 2.5
    torch.testing.assert_close(read_page(path)(pixels), expected, atol=TOLERANCE, rtol=0)
    open_page(browser, path)
    torch.testing.assert_close(logits_of(browser, pixels), expected, atol=TOLERANCE, rtol=0)
    browser.find_element("id", "file").send_keys(str(picture))
    until_it_says(browser, "Answered in")
    share = answers(network, torch.from_numpy(shown(browser)[1])[None]).div(2.5).softmax(1).max()
    for percent in (0, int(100 * share), int(100 * share) + 1, 0):
        browser.execute_script(MOVE, percent)
        unsure = browser.find_element("id", "status").text.startswith("Unsure, at best ")
        assert unsure == (share < percent / 100)
    assert console(browser) == []


def test_the_page_says_what_a_threshold_lets_through(browser, tmp_path):
    network, size = build("weighed")
    rows = [[0.0, 1.0, 0.9], [0.5, 0.97, 0.92], [0.8, 0.81, 0.975], [0.99, 0.0, None]]
    open_page(browser, write(network, tmp_path, size, rows, ["Below 80%: a <b>."]))
    sentences = browser.find_element("id", "cautions").get_attribute("textContent")
    assert "Below 80\N{NO-BREAK SPACE}%: a <b>." in sentences
    note = browser.find_element("css selector", ".note")
    for percent, words in (
        (0, "Without a limit it answers all test images; 90.0 % of these answers are right."),
        (79, "97.0 % of the test images reach 50 %; 92.0 % of these answers are right."),
        (80, "81.0 % of the test images reach 80 %; 97.5 % of these answers are right."),
        (99, "< 0.1 % of the test images reach 99 %."),
    ):
        browser.execute_script(MOVE, percent)
        assert note.text.replace("\N{NO-BREAK SPACE}", " ").startswith(words)
    assert note.text.endswith("not calibrated: they may be too high or too low.")
    open_page(browser, write(network, tmp_path, size, temperature=2.0, calibrated_on="200 images"))
    browser.execute_script(MOVE, 80)
    assert browser.find_element("css selector", ".note").text == ""
    assert not browser.find_elements("id", "cautions")
    footer = browser.find_element("css selector", "footer").get_attribute("textContent")
    assert "temperature 2.000, fitted on 200 images" in footer
    assert console(browser) == []


def test_the_answer_lies_in_the_first_screen_of_a_phone(browser, tmp_path):
    network, size = build("cifarnet 32")
    screen = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    open_page(browser, write(network, tmp_path, size))
    browser.find_element("id", "file").send_keys(str(pictures(tmp_path)[0]))
    until_it_says(browser, "Answered in")
    for name, most in (("status", 600), ("bars", 800)):
        box = browser.find_element("id", name).rect
        assert box["y"] + box["height"] < most
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
