"""The temperature against independent fits, and against what it must not change."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from support.reports import random_logits

from cifarnet.inference.calibration import fit_temperature


@given(st.integers(2, 12), st.floats(0.2, 8))
def test_the_temperature_is_that_of_an_independent_fit(classes, spread):
    """By LBFGS on the inverse of the temperature: the loss is convex in it."""
    logits, labels = random_logits(classes, 300)
    logits *= spread
    inverse = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], line_search_fn="strong_wolfe", max_iter=100)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits.double() * inverse, labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(logits, labels) == pytest.approx(1 / inverse.item(), rel=1e-3)


def test_no_temperature_on_a_grid_has_a_lower_cross_entropy():
    logits, labels = random_logits(10, 500)

    def loss(temperature):
        shares = (logits.double() * 3 / temperature).softmax(1).numpy()
        return log_loss(labels, shares, labels=range(10))

    fitted = fit_temperature(logits * 3, labels)
    assert loss(fitted) <= min(loss(t) for t in np.geomspace(0.1, 50, 100))


def test_without_a_mistake_there_is_no_temperature():
    labels = torch.arange(40) % 4
    logits = torch.nn.functional.one_hot(labels).float()
    assert fit_temperature(logits, labels) is None
    logits[0] = logits[1]
    assert fit_temperature(logits, labels) < 1
