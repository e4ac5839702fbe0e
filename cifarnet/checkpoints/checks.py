"""Checks of what a file holds, once, when it is loaded.

Functions raise ValueError or return a bool. A checksum detects damage, not tampering.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_fields(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless `values` has each name of `kinds`, in its type: see `has_type`."""
    for name, annotation in kinds.items():
        if name not in values:
            raise ValueError(f"it lacks {name!r}")
        if not has_type(values[name], annotation):
            shown = getattr(annotation, "__name__", annotation)
            raise ValueError(f"{name!r} is not of type {shown}")


def has_type(value: Any, kind: Any) -> bool:
    """Whether `value` has the type that the annotation `kind` names, all the way down.

    A dataclass is a dict with exactly its fields, and a tuple is a list. A float is finite, and may
    be an int. A tensor is dense, on the CPU, and owns its numbers.
    """
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(has_type(value, each) for each in arguments)
    if typing.get_origin(kind) in (list, tuple):
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            has_type(part, each)
            for item in value.items()
            for part, each in zip(item, arguments, strict=True)
        )
    if dataclasses.is_dataclass(kind):
        columns = typing.get_type_hints(kind)
        return (
            isinstance(value, dict)
            and value.keys() == columns.keys()
            and all(has_type(value[name], each) for name, each in columns.items())
        )
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is Tensor:
        return type(value) is Tensor and _is_dense(value)
    return kind is Any or type(value) is kind


def _is_dense(value: Tensor) -> bool:
    """Whether `value` is an ordinary tensor; an expanded one has fewer numbers than it shows."""
    return (
        not value.is_nested
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` that names the first of `weights` that is not finite."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise ValueError(f"its weights are not finite: {name}")


def fits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether `weights` have the names, shapes and types of `expected`, a network's
    state_dict."""
    return expected.keys() == weights.keys() and all(
        (value.shape, value.dtype) == (weights[name].shape, weights[name].dtype)
        for name, value in expected.items()
    )
