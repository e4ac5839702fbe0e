"""Rounds, medians and failures of the measurements."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench
from cifarnet.core import device
from commands import bench_rows, bench_training, benching
from commands.bench_rows import NETWORKS, Measurement


@pytest.fixture
def named(monkeypatch):
    """Two main rows and another one, in place of the real ones."""
    table = {
        "matrix product, fp32": Measurement("", {}),
        "plain loop, fp32": Measurement("", {}),
        "step, fp32, fast forms": Measurement("", {}, is_main=False),
    }
    for module in (bench_rows, benching):
        monkeypatch.setattr(module, "MEASUREMENTS", table)


def answer(monkeypatch, rates):
    """Children measure `rates` in turn; returns the names that they were asked for."""
    asked, rates = [], iter(rates)

    def measure(name, device):
        asked.append(name)
        rate = next(rates)
        return {"rate": rate, "memory": int(rate) * 2**20}

    monkeypatch.setattr(benching, "_in_child", measure)
    return asked


def test_medians_of_all_rounds_are_shown_and_written(named, monkeypatch, capsys, tmp_path):
    asked = answer(monkeypatch, [1e3, 30.0, 50.0, 3e3, 10.0, 2e3, 20.0])
    file = tmp_path / "figures.json"
    assert bench.main(["--device", "cpu", "--json", str(file)]) == 0
    product, loop, step = benching.MEASUREMENTS
    assert asked == [product, loop, step, product, loop, product, loop]
    figures = json.loads(file.read_text())["figures"]
    assert figures == {
        product: {"rate": 2e3, "memory": 3000 * 2**20},
        loop: {"rate": 20.0, "memory": 30 * 2**20},
        step: {"rate": 50.0, "memory": 50 * 2**20},
    }
    assert "| step, fp32, fast forms | 50 img/s | 2.5 |" in capsys.readouterr().out


def test_quick_is_one_round_of_the_main_rows(named, monkeypatch):
    asked = answer(monkeypatch, [1.0, 2.0])
    assert bench.main(["--device", "cpu", "--quick"]) == 0
    assert asked == list(benching.MEASUREMENTS)[:2]


@pytest.mark.parametrize(
    ("stderr", "why"), [("Traceback\nRuntimeError: no", "RuntimeError: no"), ("", "exit code 3")]
)
def test_a_child_that_fails_ends_the_command_with_1(named, monkeypatch, capsys, stderr, why):
    done = SimpleNamespace(returncode=3, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: done)
    assert bench.main(["--device", "cpu", "--quick"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"error: the measurement 'matrix product, fp32' failed: {why}")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_rows_in_bf16_need_a_device_with_bf16(monkeypatch, capsys, has_bf16):
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: has_bf16)
    asked = answer(monkeypatch, itertools.count(1.0))
    assert bench.main(["--device", "cpu", "--quick"]) == 0
    assert any("bf16" in name for name in asked) == has_bf16
    assert {"main.py, fp32, batched", "evaluation, fp32, fast forms"} < set(asked)
    words = "without the rows in bf16: this cpu has no bf16 instructions"
    assert (words in capsys.readouterr().out) != has_bf16
    assert bench.main(["--device", "cpu", "--only", "bf16"]) == (0 if has_bf16 else 2)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def is_running(process: int) -> bool:
    """Whether the process exists and computes: a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SLOW = f"""  # bench.py, whose measurements do not end
import sys, time
sys.path.insert(0, {str(benching.COMMAND.parent)!r})
import bench
from commands import bench_training, benching
benching.COMMAND = __file__
bench_training.plain_loop = lambda device: time.sleep(600)
bench_training.measure_ranks = lambda group, device: time.sleep(600)
sys.exit(bench.main())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    ("signum", "flags"),
    [
        (signal.SIGTERM, ["--only", "plain loop"]),
        (signal.SIGKILL, ["--only", "plain loop"]),
        pytest.param(signal.SIGKILL, ["--ranks", "2"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_children_end_with_the_command(tmp_path, signum, flags):
    (tmp_path / "slow.py").write_text(SLOW)
    words = [sys.executable, tmp_path / "slow.py", "--device", "cpu", *flags]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        below = []
        while len(below) < (3 if "--ranks" in flags else 1):
            assert run.poll() is None
            time.sleep(0.1)
            below = list(itertools.chain(*([p, *children(p)] for p in children(run.pid))))
        os.kill(run.pid, signum)
    for _ in range(600):
        if not any(map(is_running, below)):
            return
        time.sleep(0.1)
    pytest.fail(f"{below} still run")


def test_an_unknown_child_fails():
    """A real process: whatever goes wrong there is one line here."""
    with pytest.raises(benching.RunError, match="'no such thing' failed: KeyError"):
        benching._in_child("no such thing", "cpu")


def test_networks_are_shown_with_their_costs(monkeypatch, capsys):
    answer(monkeypatch, [100.0 / (1 + i % len(NETWORKS)) for i in range(3 * len(NETWORKS))])
    assert bench.main(["--device", "cpu", "--networks"]) == 0
    shown = capsys.readouterr().out
    assert "| published | 174,762 | 100.2 million | 100 img/s | 100% | 0.1 GiB |" in shown
    assert "| lite | 174,506 | 31.6 million | 50 img/s | 50% |" in shown
    assert "| eca | 174,777 | 100.2 million |" in shown
    assert "| compound scale 1 | 398,458 | 216.9 million |" in shown


def test_ranks_are_shown_with_their_efficiency(monkeypatch, capsys):
    rates = {"1": {"in all": 100.0, "each": 100.0, "exchange": 0.0}}
    rates["2"] = {"in all": 90.0, "each": 150.0, "exchange": 0.00125}

    def measure(name, device, launcher):
        assert name == "ranks"
        return {"rate": rates[launcher[-1].removeprefix("--nproc_per_node=")], "memory": 0}

    monkeypatch.setattr(benching, "_in_child", measure)
    assert bench.main(["--device", "cpu", "--ranks", "1, 2"]) == 0
    row = "| 2 | 1.25 ms | 90 img/s | 90% | 150 img/s | 150% |"
    assert capsys.readouterr().out.splitlines()[-1] == row


def test_the_profile_names_the_costliest_operations(monkeypatch, capsys):
    monkeypatch.setattr(bench_training, "BATCH", 8)
    monkeypatch.setattr(device, "has_bf16_instructions", lambda: False)
    assert bench.main(["--profile", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "in float32" in shown
    assert "Self CPU" in shown
    assert shown.count("aten::") >= 10
