"""A real browser for tests of pages: headless Chromium. Without it, its tests are skipped."""

import shutil
from pathlib import Path

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A selenium driver for all tests of this process: starting one takes seconds."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium or chromedriver is not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, "--window-size=1600,1000", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """A selenium driver, 1600 pixels wide, with a blank page and an empty console."""
    yield chromium
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    console(chromium)


def open_page(driver, path: Path) -> None:
    """Opens the file `path`, and waits until it is loaded."""
    driver.get(path.resolve().as_uri())


def console(driver) -> list[str]:
    """What the page has written to the console since the last call: errors, warnings, refusals."""
    return [entry["message"] for entry in driver.get_log("browser")]


def fetched(driver) -> list[str]:
    """The addresses that the page fetched from elsewhere; pictures in the page itself are none."""
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    return [name for name in driver.execute_script(script) if not name.startswith("data:")]
