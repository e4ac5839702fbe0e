import json
from dataclasses import replace

import pytest
from support.reports import make_report

from cifarnet.reporting.report_files import (
    move_other_report,
    remove_other_pictures,
    write_report,
)


def test_a_snapshot_whose_name_is_no_text_is_named_by_escapes(tmp_path):
    report = replace(make_report("abc"), snapshot="\udcff.pth")
    write_report(report, tmp_path)
    figures, text = (
        (tmp_path / name).read_text(encoding="utf-8")
        for name in ("metrics.json", "classification_report.txt")
    )
    assert json.loads(figures)["snapshot"] == "\udcff.pth"
    assert "snapshot: \\udcff.pth" in text


@pytest.mark.parametrize("part", ["run", "settings", "last", "best", "epoch"])
@pytest.mark.parametrize("damage", ["text", None, [1], 3])
def test_a_damaged_metrics_json_is_replaced(tmp_path, part, damage):
    report = make_report("abc")
    write_report(report, tmp_path, last=report)
    path = tmp_path / "metrics.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    place = {"settings": figures["run"], "epoch": figures["last"]}.get(part, figures)
    place[part] = damage
    path.write_text(json.dumps(figures))
    move_other_report(tmp_path, report)
    figures = write_report(report, tmp_path)
    assert figures["run"].get("settings", {}) == {}
    for name in ("last", "best"):
        assert figures[name] is None or type(figures[name]["epoch"]) in (int, str)
    other = replace(report, sha256="1", run={"id": "a"})
    move_other_report(tmp_path, other)


def test_page_and_pictures_of_another_network_do_not_stay(tmp_path):
    report = make_report("abc")
    write_report(report, tmp_path, last=report)
    places = [tmp_path / name for name in ("report.html", "confusion_matrix.png")]
    for sha256, stay in (("0", True), ("1", False)):
        for path in places:
            path.touch()
        other = replace(report, sha256=sha256)
        remove_other_pictures(tmp_path, other)
        write_report(other, tmp_path, last=report)
        assert [path.exists() for path in places] == [stay] * 2


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_the_text_shows_the_main_figures(tmp_path, classes):
    report = make_report([f"<b>$x_{i}$ é" for i in range(classes)])
    figures = write_report(report, tmp_path, last=report)
    assert (figures["last"], figures["best"]) == (report.headline(), None)
    text = (tmp_path / "classification_report.txt").read_text(encoding="utf-8")
    assert ("top-3" in text, "top-5" in text) == (classes > 3, classes > 5)
    low, high = report.interval
    for part in (
        *("a.pth", "weighted avg", *report.per_class, f"top-1 accuracy: {report.top1:.4f}"),
        f"95 % interval of top-1: {low:.4f} to {high:.4f}\n",
        f"calibration error: {report.calibration_error:.4f}\n",
    ):
        assert part in text
