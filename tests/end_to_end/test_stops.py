"""Runs that a signal stops: they end in order, and say how to go on."""

import os
import signal

import pytest
from support.commands import QUICK
from support.killed_runs import RUN, assert_same_run, end, wait_for_file
from support.outputs import epoch_of

import train
from cifarnet.augment.per_image import PerImageEngine


@pytest.mark.parametrize(
    ("signum", "code", "workers"),
    [(signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 0), (signal.SIGHUP, 129, 2)],
)
def test_a_signal_ends_after_the_step_and_the_command_printed_goes_on(
    begin, tmp_path, reference, signum, code, workers
):
    run = tmp_path / "run"
    process = begin(run, *RUN, "--num_workers", workers)
    wait_for_file(run / "snapshots_complete" / "last.pth", process)
    os.killpg(process.pid, signum)  # as a terminal and a service manager do: to the workers too
    end(process, code)
    output = (run / "output").read_text()
    assert "Traceback" not in output
    assert f"{signum.name}: ended after epoch " in output
    assert (run / "plots_complete" / "training_curves.png").exists()
    again = output.splitlines()[-1].split()
    assert (again[:2], again[-2:]) == (["python", "main.py"], ["--resume", "auto"])
    end(begin(run, *again[2:]))
    assert_same_run(run, reference)


def send_sigterm(*args) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop_in_a_step(learner, objective, batches, plan, stop) -> None:
    """Stands for `train.run_epoch`: SIGTERM comes during the first step."""
    send_sigterm()
    stop()


def test_a_run_stopped_before_its_first_epoch_can_be_resumed(command, monkeypatch):
    """Whatever ends a run that goes on from elsewhere, --resume auto does not start anew."""
    assert command("main", *QUICK, "--epochs", "1", "--snapshot_dir", "a").code == 0
    elsewhere = (*QUICK, "--snapshot_dir", "b", "--resume", "a/last.pth")
    with monkeypatch.context() as patched:
        patched.setattr(train, "run_epoch", stop_in_a_step)
        done = command("main", *QUICK)
        assert done.code == 143
        assert done.out.rstrip().endswith(QUICK[-1])  # nothing to resume
        done = command("main", *elsewhere)
        assert done.code == 143
        assert done.out.rstrip().endswith("--snapshot_dir b --resume b/last.pth")
    done = command("main", *elsewhere, "--resume", "auto")
    assert (done.code, "resuming after epoch 1 from b/last.pth" in done.out) == (0, True)


def test_a_run_resumed_by_its_path_and_stopped_goes_on_with_the_kept_settings(command, monkeypatch):
    assert command("main", *QUICK, "--epochs", "1", "--snapshot_dir", "a").code == 0
    with monkeypatch.context() as patched:
        patched.setattr(train, "run_epoch", stop_in_a_step)
        done = command("main", "--resume", "a/last.pth", "--epochs", "2")
    again = done.out.splitlines()[-1].split()
    assert (done.code, again[:2]) == (143, ["python", "main.py"])
    assert command("main", *again[2:]).code == 0
    assert epoch_of("last.pth", "a") == 2


def test_a_finished_run_stopped_while_it_is_evaluated_is_not_mixed_up_with_another(
    command, monkeypatch
):
    run = (*QUICK, "--epochs", "1", "--snapshot_dir")
    for place in ("a", "b"):
        assert command("main", *run, place).code == 0
    monkeypatch.setattr("commands.run_report.evaluate_classifier", send_sigterm)
    done = command("main", *run, "b", "--resume", "a/last.pth")
    assert done.code == 143
    assert done.out.rstrip().endswith("--snapshot_dir b --resume a/last.pth")


def test_a_signal_while_images_are_read_ends_too(command, monkeypatch):
    monkeypatch.setattr("commands.training_run.load_splits", send_sigterm)
    done = command("main", *QUICK)
    assert (done.code, done.err) == (143, "")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_python_drops_during_the_report_counts(command, monkeypatch):
    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):  # the handler runs between two instructions
                pass

    monkeypatch.setattr("commands.evaluation.write_report", lambda *arguments: Dropping())
    done = command("main", *QUICK, "--epochs", "1")
    assert (done.code, done.err) == (143, "")
    line, again = done.out.splitlines()[-2:]
    assert line.endswith(
        "SIGTERM: ended after epoch 1; all epochs are done; write the report with:"
    )
    assert again.endswith("--resume auto")


def test_the_first_signal_ends_a_wait_for_data(command, monkeypatch):
    def hang(*arguments):
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr(PerImageEngine, "__call__", hang)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    done = command("main", *QUICK, "--epochs", "1", "--num_workers", "1")
    assert (done.code, done.err) == (143, "")
    assert "SIGTERM: ended after epoch 0" in done.out
