import pytest

from cifarnet.checkpoints.calibration_images import (
    describe_folder,
    describe_test_share,
    may_include_test_images,
)

HERE = describe_folder(1_060, "noise (2)"), describe_test_share(60, 300, "noise (2)", 0.2)
ELSEWHERE = (
    "",
    "60 validation images of noise (2)",
    describe_folder(60, "noise"),
    describe_folder(60, "noise (2)x"),
    describe_test_share(60, 300, "noise", 0.2),
)


@pytest.mark.parametrize("words", ELSEWHERE)
def test_images_of_another_data_set_are_no_test_images(words):
    assert not may_include_test_images(words, "noise (2)")


@pytest.mark.parametrize("words", HERE)
def test_a_folder_of_the_same_name_and_a_share_may_include_test_images(words):
    assert may_include_test_images(words, "noise (2)")
    for other in ELSEWHERE:  # those of an ensemble
        assert may_include_test_images(f"{other}; {words}", "noise (2)")
        assert may_include_test_images(f"{words}; {other}", "noise (2)")
