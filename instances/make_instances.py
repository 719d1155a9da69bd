"""Rebuild the shipped instances: train small ReLU networks, state properties, compress, label.

    python instances/make_instances.py             write networks, properties, variants and the lists
    python instances/make_instances.py --verdicts  the same, and decide every row with mucg4 itself
    python instances/make_instances.py small ...   the family in the folder `small` instead

It needs mucg4 and scikit-learn installed (extra `test`). The data come with scikit-learn: `diabetes`
(regression on five of its measurements), `wine` (three cultivars from five of its measurements) and
`digits` (8x8 images of ten digits); for the small family `diabetes` and `wine` with all measurements, and
`breast_cancer` (one of two findings from thirty measurements). Seeds are fixed, but training is floating
point: another machine may give slightly different files, and then other verdicts, so `expected.csv` belongs
to the files committed beside it.

`expected.csv` lists `sat` where an attack found an input that onnxruntime confirms. `unsat` is written
with `--verdicts` only: proved by mucg4's search from nothing, and the proof accepted by its checker.
Without the flag the unsat rows of the existing file are kept when network and property are unchanged.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.gate.witness import replay_witness
from mucg4.lab.compress import compress
from mucg4.model.query import Conjunction, Query
from mucg4.read.instance import read_query

HERE = Path(__file__).resolve().parent
METHODS = ("fp16", "int8", "qdq8", "prune10", "prune30", "neurons10", "tune3", "permute", "reserialise")
SMALL_METHODS = ("fp16", "int8", "prune10", "neurons10", "tune3", "permute")
TIMEOUT = 60
Array = np.ndarray


@dataclass(frozen=True)
class Trained:
    """A network as weights `[(W (in, out), b (out,)), ...]` with the scaled data `x` and labels `y`."""

    name: str
    layers: list[tuple[Array, Array]]
    x: Array
    y: Array

    def __call__(self, x: Array) -> Array:
        """Outputs `(batch, m)` at `x (batch, n)`, in float64."""
        for w, b in self.layers[:-1]:
            x = np.maximum(x @ w + b, 0)
        w, b = self.layers[-1]
        return np.asarray(x @ w + b)


# -- networks -----------------------------------------------------------------------------------


def _columns(data: Any, names: Iterable[str]) -> Array:
    """The named measurements, each scaled to [0, 1]."""
    x = data.data[:, [list(data.feature_names).index(n) for n in names]]
    return np.asarray((x - x.min(0)) / (x.max(0) - x.min(0)))


def _trained(name: str, model: Any, x: Array, y: Array) -> Trained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopping at the iteration limit is intended
        model.fit(x, y)
    layers = [
        (w.astype(np.float32), b.astype(np.float32)) for w, b in zip(model.coefs_, model.intercepts_, strict=True)
    ]
    return Trained(name, layers, x, y)


def train() -> list[Trained]:
    """The three networks of the large family."""
    from sklearn.datasets import load_diabetes, load_digits, load_wine
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    options = {"random_state": 0, "learning_rate_init": 2e-3, "n_iter_no_change": 200}
    diabetes, wine, digits = load_diabetes(), load_wine(), load_digits()
    x = _columns(diabetes, ("age", "bmi", "bp", "s5", "s6"))
    y = (diabetes.target - diabetes.target.mean()) / diabetes.target.std()
    regressor = MLPRegressor(hidden_layer_sizes=(28,) * 4, max_iter=1500, alpha=0.0, **options)
    first = _trained("diabetes_4x28", regressor, x, y)
    x = _columns(wine, ("alcohol", "malic_acid", "ash", "color_intensity", "hue"))
    classifier = MLPClassifier(hidden_layer_sizes=(25,) * 4, max_iter=600, alpha=0.0, **options)
    second = _trained("wine_4x25", classifier, x, wine.target)
    classifier = MLPClassifier(hidden_layer_sizes=(24, 24), max_iter=150, alpha=1e-2, **options)
    third = _trained("digits_2x24", classifier, digits.data / 16.0, digits.target)
    return [first, second, third]


def model_bytes(net: Trained) -> bytes:
    """The network as an ONNX file of Gemm and Relu nodes, weights stored as (out, in) as trainers usually do."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, value = [], [], "x"
    for k, (w, b) in enumerate(net.layers):
        out = "y" if k == len(net.layers) - 1 else f"z{k}"
        weights += [(f"W{k}", w.T.copy()), (f"b{k}", b)]
        dense = [value, f"W{k}", f"b{k}"]
        nodes.append(helper.make_node("Gemm", dense, [out], name=f"dense{k}", transB=1))
        if out != "y":
            value = f"h{k}"
            nodes.append(helper.make_node("Relu", [out], [value], name=f"relu{k}"))
    graph = helper.make_graph(
        nodes,
        net.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, net.x.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, net.layers[-1][1].size])],
        [numpy_helper.from_array(w, name) for name, w in weights],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    )


# -- properties ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Property:
    """A property of one network: a comment, the box and the text of the output assertion."""

    name: str
    comment: str
    lower: Array
    upper: Array
    unsafe: str

    def text(self, outputs: int) -> str:
        """VNN-LIB 1.0."""
        lines = [f"; {self.comment}", ""]
        lines += [f"(declare-const X_{i} Real)" for i in range(len(self.lower))]
        lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
        lines += ["", "; inputs"]
        lines += [f"(assert {bound})" for bound in box_bounds(self.lower, self.upper)]
        return "\n".join([*lines, "", "; unsafe outputs", f"(assert {self.unsafe})"]) + "\n"


def box_bounds(lower: Array, upper: Array) -> list[str]:
    """`(>= X_i l)` and `(<= X_i u)` for every input."""
    pairs = enumerate(zip(lower.tolist(), upper.tolist(), strict=True))
    return [b for i, (lo, hi) in pairs for b in (f"(>= X_{i} {lo:.6g})", f"(<= X_{i} {hi:.6g})")]


def _sampled_range(net: Trained, lower: Array, upper: Array) -> tuple[float, float]:
    points = np.random.default_rng(1).uniform(lower, upper, (100_000, len(lower)))
    values = net(points)[:, 0]
    return float(values.min()), float(values.max())


def diabetes_properties(net: Trained) -> list[Property]:
    """Bounds on the predicted progression, each a share of the sampled range away from the sampled extreme."""
    out = []
    for name, low, high, share in (("narrow", 0.35, 0.65, 0.08), ("wide", 0.25, 0.75, 0.25), ("tight", 0.4, 0.6, 0.01)):
        lower, upper = np.full(5, low), np.full(5, high)
        least, most = _sampled_range(net, lower, upper)
        text = f"unsafe: the predicted progression exceeds its sampled maximum by {share:.0%} of its sampled range"
        out.append(Property(name, text, lower, upper, f"(>= Y_0 {most + share * (most - least):.4f})"))
    boxes, parts = ((0.3, 0.5), (0.5, 0.7)), []
    for low, high in boxes:
        lower, upper = np.full(5, low), np.full(5, high)
        least, most = _sampled_range(net, lower, upper)
        inside = " ".join(box_bounds(lower, upper))
        parts.append(f"(and {inside} (>= Y_0 {most + 0.3 * (most - least):.4f}))")
        parts.append(f"(and {inside} (<= Y_0 {least - 0.3 * (most - least):.4f}))")
    text = "unsafe: the prediction leaves a range, another one on each of two boxes"
    disjuncts = "\n  ".join(parts)
    out.append(Property("boxes", text, np.zeros(5), np.ones(5), f"(or\n  {disjuncts})"))
    return out


def wine_properties(net: Trained) -> list[Property]:
    """Two cultivars are both rated highly somewhere in the middle; one cultivar loses near its own middle."""
    centre = np.median(net.x, axis=0)
    lower, upper = np.clip(centre - 0.25, 0, 1), np.clip(centre + 0.25, 0, 1)
    lesser = net(np.random.default_rng(1).uniform(lower, upper, (100_000, 5)))[:, :2].min(axis=1)
    limit = lesser.max() + 0.05 * (lesser.max() - lesser.min())
    both = f"(and (>= Y_0 {limit:.4f}) (>= Y_1 {limit:.4f}))"
    out = [Property("both", "unsafe: cultivars 0 and 1 are both rated highly", lower, upper, both)]
    centre = np.median(net.x[net.y == 1], axis=0)
    lower, upper = np.clip(centre - 0.12, 0, 1), np.clip(centre + 0.12, 0, 1)
    loses = "(or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1)))"
    out.append(Property("loses", "unsafe: cultivar 1 loses near its middle", lower, upper, loses))
    return out


def digits_properties(net: Trained) -> list[Property]:
    """Robustness of single images in the maximum norm."""
    out = []
    right = np.flatnonzero(net(net.x).argmax(1) == net.y)
    for image, radius in ((right[11], 0.08), (right[20], 0.13)):
        label = int(net.y[image])
        lower, upper = np.clip(net.x[image] - radius, 0, 1), np.clip(net.x[image] + radius, 0, 1)
        unsafe = "(or\n" + "\n".join(f"  (and (>= Y_{k} Y_{label}))" for k in range(10) if k != label) + ")"
        out.append(Property(f"img{image}_{radius}", f"unsafe: image {image} is not a {label}", lower, upper, unsafe))
    return out


# -- the small family: few neurons of open phase, so that the SMT engine takes seconds -----------


def train_small() -> list[Trained]:
    """Three networks; the last has more neurons than the SMT engine takes, but bounding decides most of them."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    options = {"random_state": 0, "learning_rate_init": 5e-3, "n_iter_no_change": 200, "max_iter": 600}
    diabetes, wine, cancer = load_diabetes(), load_wine(), load_breast_cancer()
    y = (diabetes.target - diabetes.target.mean()) / diabetes.target.std()
    regressor = MLPRegressor(hidden_layer_sizes=(10,) * 3, alpha=0.0, **options)
    first = _trained("diabetes_3x10", regressor, _columns(diabetes, diabetes.feature_names), y)
    classifier = MLPClassifier(hidden_layer_sizes=(12,) * 3, alpha=1e-3, **options)
    second = _trained("wine_3x12", classifier, _columns(wine, wine.feature_names), wine.target)
    classifier = MLPClassifier(hidden_layer_sizes=(40, 40), alpha=1e-3, **options)
    third = _trained("cancer_2x40", classifier, _columns(cancer, cancer.feature_names), cancer.target)
    return [first, second, third]


def _around_median(net: Trained, name: str, radius: float, share: float) -> Property:
    """The first output exceeds its sampled maximum, by a share of its sampled range, near the median of the data."""
    centre = np.median(net.x, axis=0)
    lower, upper = np.clip(centre - radius, 0, 1), np.clip(centre + radius, 0, 1)
    least, most = _sampled_range(net, lower, upper)
    text = f"unsafe: the first output exceeds its sampled maximum by {share:.0%} of its sampled range"
    return Property(name, text, lower, upper, f"(>= Y_0 {most + share * (most - least):.4f})")


def small_diabetes_properties(net: Trained) -> list[Property]:
    """Two limits that hold, one that does not."""
    rows = (("near", 0.1, 0.15), ("wide", 0.15, 0.15), ("tight", 0.1, 0.05))
    return [_around_median(net, name, radius, share) for name, radius, share in rows]


def small_wine_properties(net: Trained) -> list[Property]:
    """Robustness of one sample: two disjuncts."""
    lower, upper = np.clip(net.x[59] - 0.12, 0, 1), np.clip(net.x[59] + 0.12, 0, 1)
    unsafe = "(or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1)))"
    return [Property("sample59", "unsafe: sample 59 is not of cultivar 1", lower, upper, unsafe)]


def small_cancer_properties(net: Trained) -> list[Property]:
    """Limits of the rating on two boxes."""
    return [_around_median(net, name, radius, 0.4) for name, radius in (("near", 0.05), ("wide", 0.07))]


# -- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A folder of instances: its networks, the properties of each, and how variants are made."""

    folder: str
    train: Callable[[], list[Trained]]
    properties: dict[str, Callable[[Trained], list[Property]]]
    methods: tuple[str, ...]


FAMILIES = {
    "": Family(
        "",
        train,
        {"diabetes_4x28": diabetes_properties, "wine_4x25": wine_properties, "digits_2x24": digits_properties},
        METHODS,
    ),
    "small": Family(
        "small",
        train_small,
        {
            "diabetes_3x10": small_diabetes_properties,
            "wine_3x12": small_wine_properties,
            "cancer_2x40": small_cancer_properties,
        },
        SMALL_METHODS,
    ),
}


def write_files(folder: Path, family: Family) -> list[tuple[str, str]]:
    """Write networks, properties, variants and `instances.csv`; the rows, originals first."""
    for part in ("onnx", "vnnlib"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in (folder / part).iterdir():
            old.unlink()
    originals, variants, manifest = [], [], []
    for net in family.train():
        data = model_bytes(net)
        (folder / "onnx" / f"{net.name}.onnx").write_bytes(data)
        texts = []
        for prop in family.properties[net.name](net):
            texts.append(f"vnnlib/{net.name.split('_')[0]}_{prop.name}.vnnlib")
            (folder / texts[-1]).write_text(prop.text(net.layers[-1][1].size), encoding="utf-8")
        originals += [(f"onnx/{net.name}.onnx", t) for t in texts]
        for method in family.methods:
            name = f"onnx/{net.name}~{method}.onnx"
            (folder / name).write_bytes(compress(data, method))
            variants += [(name, t) for t in texts]
            manifest.append((name, f"onnx/{net.name}.onnx", method))
    _write_csv(folder / "manifest.csv", [("onnx", "parent", "method"), *manifest])
    _write_csv(folder / "instances.csv", [(*row, str(TIMEOUT)) for row in originals + variants])
    return originals + variants


def _write_csv(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


# -- verdicts -----------------------------------------------------------------------------------


def attack(query: Query, seed: int = 0) -> bool:
    """Whether sampling and sign steps find an input that violates the property in onnxruntime."""
    rng = np.random.default_rng(seed)
    for case in query.cases:
        lo, hi = case.box.lo, case.box.hi
        for conj in case.conjunctions:

            def excess(x: Array, conj: Conjunction = conj) -> Array:
                """How far each point `(batch, n)` is from the unsafe set; at most 0 inside."""
                return np.asarray((x @ conj.x_coeffs.T + query.network(x) @ conj.y_coeffs.T + conj.constants).max(1))

            x = rng.uniform(lo, hi, (3000, len(lo)))
            x = x[excess(x).argsort()[:20]]
            for step in (0.3, 0.1, 0.03, 0.01) * 5:
                slope = np.stack([excess(x + h) - excess(x - h) for h in np.diag(1e-4 * (hi - lo))], axis=1)
                x = np.clip(x - step * (hi - lo) * np.sign(slope), lo, hi)
                best = x[excess(x).argmin()]
                if excess(best[None])[0] < 0 and replay_witness(query, best) is not None:
                    return True
    return False


def prove(query: Query) -> str:
    """The verdict of a search from nothing; `unsat` only when the checker accepts the proof."""
    from mucg4.check.walk import check
    from mucg4.model.verdict import Safe
    from mucg4.settings import Settings
    from mucg4.verify import verify

    verdict = verify(query, Settings(timeout=300.0, reuse=False))
    if isinstance(verdict, Safe):
        report = check(verdict.proof, query)
        return "unsat" if report.accepted else f"rejected ({report.reason})"
    return verdict.word


def label(folder: Path, rows: list[tuple[str, str]], decide: bool, kept: dict[tuple[str, str], str]) -> None:
    """Write `expected.csv`; rows that nothing decides are left out and named."""
    out = [("onnx", "vnnlib", "verdict")]
    for row in rows:
        query = read_query(folder / row[0], folder / row[1])
        verdict = "sat" if attack(query) else kept.get(row, "unknown")
        if decide:
            proved = prove(query)
            if {verdict, proved} == {"sat", "unsat"}:
                raise SystemExit(f"{row}: a witness exists, but mucg4 proves unsat")
            verdict = proved if proved in ("sat", "unsat") else verdict
        if verdict in ("sat", "unsat"):
            out.append((*row, verdict))
        else:
            print("undecided:", *row)
    _write_csv(folder / "expected.csv", out)


def _state(folder: Path) -> dict[tuple[str, str], tuple[bytes, bytes, str]]:
    """Content and verdict of every row that is labelled unsat now."""
    path = folder / "expected.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [r for r in csv.reader(file) if r[2] == "unsat"]
    files = {r: (folder / r[0], folder / r[1]) for r in map(lambda r: (r[0], r[1]), rows)}
    return {r: (a.read_bytes(), b.read_bytes(), "unsat") for r, (a, b) in files.items() if a.exists() and b.exists()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="rebuild the shipped instances")
    parser.add_argument("--verdicts", action="store_true", help="decide every row with mucg4 and check the proofs")
    parser.add_argument("family", nargs="?", default="", choices=sorted(FAMILIES), help="(default: the large one)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this one)")
    arguments = parser.parse_args()
    family = FAMILIES[arguments.family]
    folder = arguments.out / family.folder
    before = _state(folder)
    rows = write_files(folder, family)
    kept = {
        row: verdict
        for row, (network, prop, verdict) in before.items()
        if (folder / row[0]).read_bytes() == network and (folder / row[1]).read_bytes() == prop
    }
    label(folder, rows, arguments.verdicts, kept)


if __name__ == "__main__":
    main()
