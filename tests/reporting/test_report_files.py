import json
from dataclasses import replace

import pytest
from support.reports import make_report

from cifarnet.core.errors import RunError
from cifarnet.reporting.corruptions import CORRUPTIONS, CorruptionRow
from cifarnet.reporting.report_files import (
    CURVES,
    PAGE,
    Attempts,
    move_measured_report,
    move_other_report,
    write_report,
)


def write(report, files, **parts):
    return write_report(report, files, range(report.images), **parts)


@pytest.mark.parametrize("part", ["run", "settings", "last", "best", "epoch"])
@pytest.mark.parametrize("damage", ["text", None, [1], 3])
def test_a_damaged_metrics_json_is_replaced(tmp_path, part, damage):
    report = make_report("abc")
    write(report, Attempts(tmp_path), last=report)
    path = tmp_path / "metrics.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    place = {"settings": figures["run"], "epoch": figures["last"]}.get(part, figures)
    place[part] = damage
    path.write_text(json.dumps(figures))
    move_other_report(tmp_path, report)
    figures = write(report, Attempts(tmp_path))
    assert figures["run"] == {}
    for model in filter(None, (figures["last"], figures["best"])):
        assert type(model["epoch"]) in (int, str)
    move_other_report(tmp_path, replace(report, sha256="1", run={"id": "a"}))


@pytest.mark.parametrize(("temperature", "moved"), [(1.0, False), (2.0, True), (None, True)])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_report_with_another_temperature_is_another_one(tmp_path, temperature, moved, earlier):
    report = make_report("abc")
    write(report, Attempts(tmp_path), last=report)
    if earlier:  # versions without calibration
        path = tmp_path / "metrics.json"
        figures = json.loads(path.read_text(encoding="utf-8"))
        del figures["temperature"]
        path.write_text(json.dumps(figures))
    (tmp_path / PAGE).touch()
    again = make_report("abc", temperature=temperature)
    figures = write(again, Attempts(tmp_path))
    assert (figures["last"] is None, (tmp_path / PAGE).exists()) == (moved, not moved)
    assert move_other_report(tmp_path, again) is None
    assert (move_other_report(tmp_path, report) is None) is not moved


@pytest.mark.parametrize("earlier", [False, True])
def test_an_ensemble_with_a_calibrated_member_is_another_one(tmp_path, earlier):
    before = [{"sha256": "1"} if earlier else {"sha256": "1", "temperature": 1.0}]
    write(make_report("abc", temperature=None, members=before), Attempts(tmp_path))
    same, other = (
        make_report("abc", temperature=None, members=[{"sha256": "1", "temperature": t}])
        for t in (1.0, 2.0)
    )
    assert move_other_report(tmp_path, same) is None
    assert move_other_report(tmp_path, other)


def test_a_report_of_unknown_origin_is_moved_without_the_curves(tmp_path):
    for name in (PAGE, CURVES[0]):
        (tmp_path / name).touch()
    moved = move_other_report(tmp_path, make_report("abc"))
    assert [path.name for path in moved.iterdir()] == [PAGE]
    assert move_other_report(tmp_path, make_report("abc")) is None


def test_a_report_on_as_many_other_images_is_another_one(tmp_path):
    """Such as the same folder, with corrected labels."""
    report = make_report("abc", images_sha256="1")
    write(report, Attempts(tmp_path))
    assert move_other_report(tmp_path, report) is None
    assert move_other_report(tmp_path, replace(report, images_sha256="2"))


@pytest.mark.parametrize("metrics", ["readable", "missing"])
def test_a_corruption_table_of_another_report_is_moved_not_deleted(tmp_path, metrics):
    report = make_report("abc")
    rows = [CorruptionRow("none", 0, 0.5, 60), CorruptionRow("fog", 1, 0.25, 60)]
    write(report, Attempts(tmp_path), corruptions=rows)
    table = (tmp_path / CORRUPTIONS).read_text()
    if metrics == "missing":
        (tmp_path / "metrics.json").unlink()
    other = replace(report, sha256="1")
    folder = move_measured_report(tmp_path, other)
    figures = write(other, Attempts(tmp_path), last=other)
    assert ((folder / CORRUPTIONS).read_text(), figures["corruptions"]) == (table, None)
    assert (folder / "metrics.json").exists() == (metrics == "readable")
    assert not (tmp_path / CORRUPTIONS).exists()
    assert move_measured_report(tmp_path, report) is None  # a report without a table stays


def test_a_report_without_its_folder_says_why(tmp_path):
    (tmp_path / "gone").touch()
    files = Attempts(tmp_path / "gone" / "plots")
    write(make_report("abc"), files)
    with pytest.raises(RunError, match=r"metrics\.json \(Not a directory\), classification_report"):
        files.check()


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_the_text_shows_the_main_figures(tmp_path, classes):
    report = make_report([f"<b>$x_{i}$ é" for i in range(classes)], snapshot="\udcff.pth")
    figures = write(report, Attempts(tmp_path), last=report)
    assert (figures["last"], figures["best"]) == (report.headline(), None)
    text = (tmp_path / "classification_report.txt").read_text(encoding="utf-8")
    assert ("top-3" in text, "top-5" in text) == (classes > 3, classes > 5)
    low, high = report.interval
    for part in (
        *(
            "snapshot: \\udcff.pth",
            "weighted avg",
            *report.per_class,
            f"top-1 accuracy: {report.top1:.4f}",
        ),
        f"95 % interval of top-1: {low:.4f} to {high:.4f}\n",
        f"calibration error: {report.calibration_error:.2%}\n",
    ):
        assert part in text
