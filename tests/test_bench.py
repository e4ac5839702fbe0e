"""bench.py: which requests it refuses, and its exit codes."""

import os
import signal

import pytest

import bench
from commands import bench_training, benching


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense; see --help"),
        (["--ranks", "1,two"], "--ranks 1,two: name numbers of processes, as in 1,2"),
        (["--quick", "--only", "compiled"], "no measurement of --quick has that in its name"),
        (["--only", "nothing"], "--only nothing: no measurement has that in its name"),
        (["--data_dir", "."], "--pretrained and --data_dir are for --inference; add it"),
        (["--json", "no/where.json"], "--json no/where.json: the folder no cannot be written to"),
        (["--json", "f.json", "--ranks", "1"], "--ranks write no --json file; remove --json"),
        (["--json", "f.json", "--profile"], "--profile and --ranks write no --json file"),
        (["--inference", "--pretrained", "hour,nobody"], "there are no weights 'nobody'"),
        (["--networks", "--inference"], "--networks and --inference are two measurements; choose"),
        (["--inference", "--only", "onnx"], "--only has no effect with --inference; remove it"),
        (["--ranks", "1", "--quick"], "--quick has no effect with --ranks; remove it"),
    ],
    ids=" ".join,
)
def test_wrong_requests_are_one_line(capsys, flags, words):
    assert bench.main(flags) == 2
    assert words in capsys.readouterr().err


def test_ctrl_c_before_the_first_measurement(monkeypatch, capsys):
    def interrupted(options):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(bench, "check_request", interrupted)
    assert bench.main([]) == 130
    assert capsys.readouterr().err == ""


def test_a_child_prints_its_figures_as_json(monkeypatch, capsys):
    monkeypatch.setattr(bench_training, "plain_loop", lambda device: 12.5)
    monkeypatch.setattr(benching, "end_with_parent", lambda: None)  # pytest closes the input
    assert bench.main(["--child", "plain loop, fp32", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith('{"rate": 12.5, "memory": ')
