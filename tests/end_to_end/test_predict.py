"""predict.py, as someone uses it on pictures."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks import reference_forward
from support.pictures import seen_by_others
from tqdm import tqdm

from commands.predicting import Table

ROOT = Path(__file__).parents[2]
CLASSES = ("bar", "disc", "star")  # in the fixture `trained`


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("source", ["weights", "snapshot"])
def test_predictions_are_those_of_the_published_forward_pass(command, trained, source):
    """OpenCV decodes, torch resizes, and a second writing of the network runs in 64 bits."""
    pictures = sorted(trained.tree.glob("test/*/*.png"))
    labels = [path.parent.name for path in pictures]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(pictures[0]) as picture:
        turned = picture.resize((50, 20))
        turned.paste("white", (0, 0, 25, 20))
        turned.save("turned.jpg", exif=exif)
        picture.convert("L").save("grey.bmp")
    pictures += [Path("turned.jpg"), Path("grey.bmp")]
    done = command("predict", "--pretrained", getattr(trained, source), "--json", *pictures)
    assert (done.code, done.err) == (0, "")
    answers = lines(done.out)
    assert [line["path"] for line in answers] == [str(path) for path in pictures]

    content = torch.load(trained.snapshot)
    mean, std = (torch.tensor(content[name]).double().view(1, 3, 1, 1) for name in ("mean", "std"))
    images = torch.from_numpy(np.stack([seen_by_others(path) for path in pictures]))
    state = {name: value.double() for name, value in content["weights"].items()}
    expected = reference_forward(state, (images / 255 - mean) / std).softmax(dim=1)
    for line, row in zip(answers, expected, strict=True):
        shares = {guess["class"]: guess["probability"] for guess in line["predictions"]}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        ours = [shares[name] for name in CLASSES]
        assert ours == pytest.approx(row.tolist(), abs=1e-4)
        assert sum(ours) == pytest.approx(1)
    assert [line["predictions"][0]["class"] for line in answers[:9]] == labels


def test_the_table_is_aligned_and_the_size_of_the_batches_does_not_matter(predict, trained):
    Path("sub").mkdir()
    for i, path in enumerate(sorted(trained.tree.glob("test/*/*.png"))):
        (Path("sub") / f"{'long' * i}\n{i}.png").write_bytes(path.read_bytes())
    done = predict("sub", "--top_k", "2")
    assert (done.code, done.err) == (0, "")
    head, *rows = done.out.splitlines()
    assert len(rows) == 9
    assert head.split() == ["image", "1.", "2."]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[0].startswith(r"sub/\n0.png ")
    assert predict("sub", "--top_k", "2", "--batch_size", "2").out == done.out
    many = predict("sub", "--top_k", "1000000").out
    assert many.splitlines()[0].split() == ["image", "1.", "2.", "3."]


def test_a_csv_file_holds_all_probabilities(predict, trained):
    pictures = sorted(trained.tree.glob("test/*/*.png"))
    Path("b,ad.png").write_bytes(b"no image")
    done = predict("--json", "--csv", "all.csv", *pictures, "b,ad.png")
    assert done.code == 1
    *answers, failed = lines(done.out)
    with Path("all.csv").open(newline="") as file:
        *rows, last = csv.DictReader(file)
    assert [row["image"] for row in rows] == [str(path) for path in pictures]
    for row, answer in zip(rows, answers, strict=True):
        first = answer["predictions"][0]
        assert (row["predicted"], row["error"]) == (first["class"], "")
        assert float(row["probability"]) == pytest.approx(first["probability"], abs=1e-5)
        shares = {guess["class"]: guess["probability"] for guess in answer["predictions"]}
        ours = {name: float(row[f"probability_{name}"]) for name in CLASSES}
        assert ours == pytest.approx(shares, abs=1e-5)
    assert (last["image"], last["error"]) == ("b,ad.png", failed["error"])
    assert set(last.values()) == {"b,ad.png", failed["error"], ""}
    assert predict("--csv", "all.csv", pictures[0]).code == 0  # such a file is replaced
    assert len(Path("all.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("target", ["PICTURE", "folder", "none/a.csv", "labels.csv"])
def test_a_csv_file_replaces_nothing_else(predict, trained, target):
    Path("folder").mkdir()
    Path("labels.csv").write_text("a.png,cat\n")
    picture = next(trained.tree.glob("test/disc/*.png"))
    before = picture.read_bytes()
    done = predict("--csv", picture if target == "PICTURE" else target, picture)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: --csv ")
    assert (picture.read_bytes(), Path("labels.csv").read_text()) == (before, "a.png,cat\n")


@pytest.mark.parametrize("form", ["table", "json"])
def test_unreadable_pictures_are_named_and_the_others_go_on(predict, trained, form):
    good = next(trained.tree.glob("test/disc/*.png"))
    Path("b\nad.png").write_bytes(good.read_bytes()[:300])
    Path("empty").mkdir()
    done = predict("empty", "b\nad.png", good, "none.png", *["--json"] * (form == "json"))
    assert done.code == 1
    *errors, summary = done.err.splitlines()
    names = ("empty", r"b\nad.png", "none.png")
    assert [name in line for name, line in zip(names, errors, strict=True)] == [True] * 3
    assert summary == "error: 3 of 4 could not be read; the lines above name them"
    if form == "json":
        answers = lines(done.out)
        assert [line["path"] for line in answers] == ["empty", "b\nad.png", str(good), "none.png"]
        assert ["error" in line for line in answers] == [True, True, False, True]
    else:
        assert [line.split()[0] for line in done.out.splitlines()] == ["image", str(good)]


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (("none.png",), 1), (("none.png", "empty"), 3), ((), 1),
        (("PICTURE", "--top_k", "0"), 1), (("PICTURE", "--tta", "crop"), 1),
        (("PICTURE", "--pretrained", "nobody"), 1), (("PICTURE", "--pretrained", "PICTURE"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_nothing_readable_or_a_wrong_request_is_2(predict, trained, flags, count):
    Path("empty").mkdir()
    picture = next(trained.tree.glob("test/disc/*.png"))
    done = predict(*(picture if flag == "PICTURE" else flag for flag in flags))
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == done.err.count("error: ") == count


def test_one_unreadable_picture_is_in_the_output_for_programs(predict, trained):
    Path("bad.png").write_bytes(b"no image")
    done = predict("bad.png", "--json", "--csv", "p.csv")
    (answer,) = lines(done.out.splitlines()[0])
    assert (done.code, list(answer)) == (2, ["path", "error"])
    with Path("p.csv").open(newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == [answer["error"]]


def test_names_that_are_not_text_come_back_from_json(predict, trained):
    name = os.fsdecode(b"latin\xe9 \xc3\xa9.png")
    try:
        Path(name).write_bytes(next(trained.tree.glob("test/disc/*.png")).read_bytes())
    except OSError:
        pytest.skip("this file system takes no such names")
    done = predict("--json", ".")
    assert done.out.isascii()
    assert lines(done.out)[0]["path"] == name


def test_ctrl_c_does_not_raise_where_the_bar_takes_its_lock(predict, trained, monkeypatch):
    take_lock, former = tqdm.get_lock, Table.row

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        return take_lock()

    def row(*cells):
        monkeypatch.setattr(tqdm, "get_lock", interrupted)
        return former(*cells)

    monkeypatch.setattr(Table, "row", row)
    done = predict(trained.tree)
    assert (done.code, done.err) == (130, "")
    assert len(done.out.splitlines()) == 2  # the head and the image that was being written


# --- in a process of its own ---


def process(*flags: object, **settings) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [sys.executable, ROOT / "predict.py", "--pretrained", *flags]
    return subprocess.Popen([*map(str, words)], **(pipes | settings))


def test_a_reader_may_stop_early(trained):
    flags = ("--batch_size", "27", *[trained.tree] * 20)
    with process(trained.weights, *flags) as run:
        assert run.stdout.readline().startswith("image ")
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_one_line(trained):
    with Path("/dev/full").open("w") as full:
        with process(trained.weights, trained.tree, stdout=full) as run:
            err = run.stderr.read()
    reason = "(No space left on device)"
    assert (run.returncode, err) == (1, f"error: the output could not be written {reason}\n")


def test_ctrl_c_ends_predicting_with_130(trained):
    with process(trained.weights, "--batch_size", "27", *[trained.tree] * 300) as run:
        assert run.stdout.readline().startswith("image ")
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (130, "")
