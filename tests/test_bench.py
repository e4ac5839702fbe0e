import pytest

import bench
from bench import GRADIENT, all_reduce_seconds, expected_table
from cifarnet.core.settings import Settings
from model import build_model, parameter_count


def test_the_expected_table_is_for_this_network():
    assert 4 * parameter_count(build_model(Settings(), 10)) == GRADIENT
    assert expected_table().count("\n| 64 |") == 2


def test_the_ring_moves_all_but_its_own_part_twice():
    assert all_reduce_seconds(1, 1e6, 1e-5, 1e9) == 0
    assert all_reduce_seconds(4, 1e6, 1e-5, 1e9) == pytest.approx(6 * 1e-5 + 2 * 0.75 * 1e-3)


def test_numbers_of_ranks_that_are_none_are_refused(capsys):
    assert bench.main(["--ranks", "1,two", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: --ranks 1,two: name numbers of processes, as in 1,2\n"


def test_wrong_requests_are_one_line(capsys):
    assert bench.main(["--nonsense"]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nonsense; see --help\n"
    assert bench.main(["--quick", "--only", "compiled", "--device", "cpu"]) == 2
    assert "no measurement of --quick has that in its name" in capsys.readouterr().err
