"""export.py --format hub,page: what is written, and the commands that take a hub folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import QUIET

import export
from cifarnet.export.page import read_page
from model import load_pretrained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    model = ("--snapshot", trained.snapshot, "--metrics", trained.metrics)
    flags = (*model, "--format", "hub,page", "--out", out)
    assert export.main([str(flag) for flag in flags]) == 0
    return out


@pytest.fixture
def hub(command, exported) -> Path:
    """A folder for the hub, out/hub, and out/page.html, in an empty working directory."""
    shutil.copytree(exported, "out")
    return Path("out/hub")


def test_a_hub_folder_works_wherever_weights_do(command, trained, hub):
    picture = next(trained.tree.glob("test/disc/*.png"))
    answers = [
        command("predict", "--pretrained", name, "--json", picture).out
        for name in (trained.weights, hub, hub.resolve())
    ]
    assert answers[0] == answers[1] == answers[2] != ""
    report = json.loads(trained.metrics.read_text())
    data = ("--data_dir", trained.tree, *QUIET)
    assert command("evaluate", "--pretrained", hub, *data).code == 0
    again = json.loads(Path("plots_complete/metrics.json").read_text())
    assert (again["sha256"], again["loss"]) == (report["sha256"], report["loss"])
    card = (hub / "README.md").read_text()
    assert f"| top-1 accuracy | {report['top1']:.2%} |" in card
    assert f"      value: {report['macro']['f1']}\n" in card
    done = command("export", "--pretrained", hub, "--format", "hub,page", "--out", "out")
    assert (done.code, done.err) == (0, "")
    of_hub, of_page = done.out.splitlines()[-2:]
    assert re.match("out/hub: 0.7. MB; .*difference of a logit 0, equal top-1 100.00%", of_hub)
    assert re.match("out/page.html: 0.9. MB; .*, equal top-1 100.00%", of_page)
    assert {path.name for path in hub.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }
    page, classifier = read_page(Path("out/page.html")), load_pretrained(hub)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(page(pixels), classifier.logits(pixels), atol=1e-3, rtol=0)


def test_the_lines_of_the_card(trained, hub, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (hub / "README.md").read_text(), re.DOTALL)
    paths = {"/path/to/CIFARNet": str(ROOT), "/path/to/this/folder": str(hub)}
    for example, path in paths.items():
        assert example in code
        code = code.replace(example, path)
    with Image.open(next(trained.tree.glob("test/star/*.png"))) as picture:
        picture.resize((300, 200)).save("photo.jpg")
    monkeypatch.setattr("sys.path", [])
    exec(code, {})
    assert capsys.readouterr().out == "star\n"


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_folder_that_is_not_for_the_hub_is_one_line(command, hub, name):
    (hub / "config.json").unlink()
    done = command(name, "--pretrained", hub, *["a.png"] * (name == "predict"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "out/hub has no config.json" in done.err


def test_a_damaged_hub_folder_and_a_former_page_are_not_hurt(command, trained, hub):
    shutil.copy(hub / "config.json", hub / "model.safetensors")
    page = Path("out/page.html").read_bytes()
    done = command("export", "--pretrained", hub, "--format", "page", "--out", "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "out/hub/model.safetensors is truncated, damaged or not a safetensors file" in done.err
    assert Path("out/page.html").read_bytes() == page
