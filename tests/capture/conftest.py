"""What tests of capture share."""

import pytest

from deformscope.capture import tensor_trace


@pytest.fixture
def traced(monkeypatch):
    """How many operators have been traced since."""
    count = []
    see = tensor_trace.TensorTrace.see
    monkeypatch.setattr(tensor_trace.TensorTrace, "see", lambda *a: (count.append(a[1]), see(*a))[1])
    return count
