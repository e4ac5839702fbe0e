"""Describes the images that a temperature was fitted on, and reads such descriptions."""

MAY_BE_FITTED_HERE = (
    "the temperature may have been fitted on some of these images; then the calibration error is "
    "too low"
)


def describe_validation(count: int, dataset: str) -> str:
    """The `count` validation images of `dataset`."""
    return f"{count:,} validation images of {dataset}"


def describe_folder(count: int, name: str) -> str:
    """All `count` images of the folder or data set `name`."""
    return f"{count:,} images in {name}"


def describe_test_share(fitted: int, total: int, dataset: str, share: float) -> str:
    """`fitted` of the `total` test images of `dataset`: the `share` of --calibrate."""
    rest = f"(--calibrate {share:g} reports on the others)"
    return f"{fitted:,} of the {total:,} test images of {dataset} {rest}"


def may_include_test_images(calibrated_on: str, dataset: str) -> bool:
    """Whether test images of `dataset` may be among the images `calibrated_on`: a share of them, or
    a folder of this name."""
    a_share = f" test images of {dataset} (" in calibrated_on
    return a_share or f" images in {dataset};" in f"{calibrated_on};"
