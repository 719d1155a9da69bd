"""Writes models of all kinds with two properties each, whose right answers dense sampling tells."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

GRID = 41  # values of each of the two inputs that vary


def written(folder: Path, only: str = "") -> Iterator[tuple[str, str]]:
    """Every model of every kind that its framework exports: its name, and "" or why there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for source in (_torch, _sklearn):
        for name, make in source():
            if only and only not in name:
                continue
            path = folder / f"{name}.onnx"
            try:
                make(path)
                properties(path)
            except Exception as error:  # noqa: BLE001 (whatever a framework raises)
                yield name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                path.unlink(missing_ok=True)
                continue
            yield name, ""
            for more, rewrite in _rewritten(path):
                try:
                    rewrite(more)
                    properties(more)
                except Exception as error:  # noqa: BLE001 (whatever a framework raises)
                    yield more.stem, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    more.unlink(missing_ok=True)
                    continue
                yield more.stem, ""


def _torch() -> Iterator[tuple[str, Any]]:
    try:
        import torch

        from .zoo import ZOO
    except ImportError:
        return
    for name, (make, shapes, dynamic) in ZOO.items():
        for new in (True, False):

            def export(path: Path, entry: Any = (make, shapes, dynamic), new: bool = new) -> None:
                make, shapes, dynamic = entry
                torch.manual_seed(0)
                model = make().eval()
                for layer in model.modules():  # statistics of a trained network
                    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
                        layer.running_mean.uniform_(-0.5, 0.5)
                        layer.running_var.uniform_(0.5, 1.5)
                kind = next(iter(model.parameters()), torch.zeros(1)).dtype
                args = tuple(torch.randn(*s, dtype=kind) for s in shapes)
                names = [f"x{i}" for i in range(len(args))]
                with torch.no_grad():
                    if new:
                        torch.onnx.export(model, args, str(path), input_names=names, dynamo=True, verbose=False)
                    else:
                        torch.onnx.export(
                            model, args, str(path), input_names=names, dynamo=False, dynamic_axes=dynamic or None
                        )

            yield f"{name}_{'new' if new else 'old'}", export


def _sklearn() -> Iterator[tuple[str, Any]]:
    try:
        from skl2onnx import to_onnx
        from sklearn.linear_model import LinearRegression, LogisticRegression
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MinMaxScaler, StandardScaler
    except ImportError:
        return
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    value, several = np.sin(x[:, 0]) + x[:, 1], (x[:, :3].argmax(axis=1)).astype(np.int64)
    models = {
        **{
            f"regressor_{a}": (MLPRegressor(hidden_layer_sizes=(8, 6), activation=a, max_iter=300), value)
            for a in ("relu", "tanh", "logistic", "identity")
        },
        "regressor_two": (MLPRegressor(hidden_layer_sizes=(8,), max_iter=300), np.stack([value, x[:, 2]], axis=1)),
        "regressor_scaled": (
            make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(8,), max_iter=300)),
            value,
        ),
        "regressor_ranged": (make_pipeline(MinMaxScaler(), MLPRegressor(hidden_layer_sizes=(8,), max_iter=300)), value),
        "linear": (LinearRegression(), value),
        "classifier": (MLPClassifier(hidden_layer_sizes=(8, 6), max_iter=300), several),
        "classifier_two": (MLPClassifier(hidden_layer_sizes=(8,), max_iter=300), several > 0),
        "logistic": (LogisticRegression(), several),
    }
    for name, (model, target) in models.items():
        for table in (False, True):  # the table of labels and numbers, or the numbers alone
            if table and "class" not in name and name != "logistic":
                continue

            def export(path: Path, model: Any = model, target: Any = target, table: bool = table) -> None:
                model.fit(x, target)
                inner = model[-1] if hasattr(model, "steps") else model
                kind = hasattr(inner, "predict_proba")
                made = to_onnx(model, x[:1], options={id(model): {"zipmap": False}} if kind else None)
                if kind and not table:  # the numbers alone
                    del made.graph.output[0]
                path.write_bytes(made.SerializeToString())

            yield f"sklearn_{name}{'_labels' if table else ''}", export


def _rewritten(path: Path) -> Iterator[tuple[Path, Any]]:
    """The model as onnxruntime's optimiser saves it, and as onnxsim does."""
    if path.stem.endswith("_old") and "lstm" not in path.stem and "gru" not in path.stem:
        return
    for level in ("BASIC", "EXTENDED"):

        def optimised(target: Path, level: str = level) -> None:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
            options.optimized_model_filepath = str(target)
            options.log_severity_level = 4
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        yield path.with_name(f"{path.stem}_{level.lower()}.onnx"), optimised
    try:
        import onnxsim
    except ImportError:
        return

    def simplified(target: Path) -> None:
        model, fine = onnxsim.simplify(onnx.load(path))
        assert fine
        onnx.save(model, target)

    yield path.with_name(f"{path.stem}_sim.onnx"), simplified


def properties(path: Path) -> None:
    """Two inputs vary, the others are fixed; the first output that varies below and above what a grid reaches."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    shapes = [[d if isinstance(d, int) else 1 for d in i.shape] for i in inputs]
    sizes = [int(np.prod(s)) for s in shapes]
    rng = np.random.default_rng(1)
    middle = np.round(rng.uniform(-0.5, 0.5, sum(sizes)), 3)
    vary = rng.choice(sum(sizes), 2, replace=False)
    steps = np.linspace(-0.5, 0.5, GRID)
    kinds = [np.float64 if "double" in i.type else np.int64 if "int64" in i.type else np.float32 for i in inputs]
    ys = []
    for a, b in itertools.product(steps, steps):
        x = middle.copy()
        x[vary] += (a, b)
        parts = np.split(x, np.cumsum(sizes)[:-1])
        feed = {i.name: p.reshape(s).astype(k) for i, p, s, k in zip(inputs, parts, shapes, kinds, strict=True)}
        ys.append(np.concatenate([np.ravel(y) for y in session.run(None, feed)]))
    y = np.array(ys, dtype=np.float64)
    low, high = y.min(axis=0), y.max(axis=0)
    varying = np.flatnonzero(high - low > 1e-4 * (1 + abs(high)))
    j = int(varying[-1]) if len(varying) else 0
    spread = max(float(high[j] - low[j]), 1e-3)
    for word, limit in (("sat", high[j] - 0.05 * spread), ("unsat", high[j] + 0.1 * spread)):
        text = "".join(f"(declare-const X_{i} Real)\n" for i in range(len(middle)))
        text += "".join(f"(declare-const Y_{i} Real)\n" for i in range(y.shape[1]))
        for i, v in enumerate(middle):
            reach = 0.5 if i in vary else 0.0
            text += f"(assert (>= X_{i} {float(v - reach)!r}))(assert (<= X_{i} {float(v + reach)!r}))\n"
        path.with_name(f"{path.stem}_{word}.vnnlib").write_text(text + f"(assert (>= Y_{j} {float(limit)!r}))\n")
