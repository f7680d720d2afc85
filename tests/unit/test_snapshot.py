"""What changes around a model is noticed."""

import pytest
import torch

from swift_sd.model.snapshot import Change, Snapshot
from swift_sd.testing.families import tiny_model


@pytest.mark.parametrize("backend", ["mkldnn", "cuda"])
def test_another_precision_of_products_is_noticed(backend):
    products = getattr(torch.backends, backend).matmul
    snapshot = Snapshot(tiny_model("llama"))
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        assert snapshot.change() is Change.STRUCTURE
    finally:
        products.fp32_precision = before
    assert snapshot.change() is Change.NOTHING
