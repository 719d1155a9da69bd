"""Exports of PyTorch and scikit-learn, as far as these are installed, read and answered without a special option."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("only", ["mlp_relu", "mlp_gelu_new", "conv_", "lstm", "several", "sklearn_regressor_tanh"])
def test_plain_exports_are_answered(tmp_path: Path, only: str) -> None:
    if only.startswith("sklearn"):
        pytest.importorskip("skl2onnx")
    else:
        pytest.importorskip("torch")
        pytest.importorskip("onnxscript")
    from .answer import answers
    from .write import written

    made = [name for name, problem in written(tmp_path, only) if not problem]
    assert made
    found = list(answers(tmp_path, timeout=60.0))
    assert len(found) == 2 * len(made) and all(right == word for _, right, word, _ in found), found
