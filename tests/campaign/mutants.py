"""Broken inputs: `python -m tests.campaign.mutants proof|onnx|vnnlib --count N --seed S --jobs J`.

Proofs are changed as JSON and packed, and handed to the checker in this process, each for the claim it was made for and
for a false one of the same network (a bound moved until the answer is sat): none may be accepted for the false claim,
and the checker may raise nothing. Networks and properties are changed as bytes and as protobuf or text, and each goes
through `mucg4 verify` in a process of its own (forked from one that has loaded everything): it has to end with status 0
and a legal word, or with status 2 and one line.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing as mp
import os
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.check.walk import check
from mucg4.errors import ProofError
from mucg4.limits.budget import Budget
from mucg4.model.proof_packed import from_packed, to_packed
from mucg4.model.proof_text import from_text, to_text
from mucg4.model.query import Query
from mucg4.model.verdict import Safe
from mucg4.settings import Settings
from mucg4.verify import verify

from .exact import value_at
from .families import Net
from .instance import Instance, Row, decimal
from .judge import query_of
from .packed import mutate_packed
from .properties import NoInstance, make
from .scorer import Scorer

Rng = np.random.Generator
WORDS = ("sat", "unsat", "unknown", "timeout")
TIMEOUT, LATE = 5.0, 10.0  # of one verify; how much later it may end
STRANGE: list[Any] = [
    0, 1, -1, 2, 255, 256, 2**31, -(2**31) - 1, 2**63, 2**70, 0.0, -0.0, 0.5, 1e-300, 1e308, -1e308, float("nan"),
    float("inf"), -float("inf"), None, True, "", "0", "x", [], [0], [[0]], {}, {"a": 1}, [[[]]],
]  # fmt: skip


def pick(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


# -- proofs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Claim:
    """A query with a proof, and a false claim about the same network."""

    true: Query
    false: Query
    proof: dict[str, Any]


def claims(count: int, seed: int) -> list[Claim]:
    """Proofs of trees with splits of inputs and of phases, of one conjunction and of two."""
    return [
        _claim(np.random.default_rng([seed, k, 11]), ("phase", "input")[k % 2], 1 + k % 4 // 2) for k in range(count)
    ]


def _claim(rng: Rng, split: str, conjunctions: int) -> Claim:
    """A random network whose least output over points is known exactly: sat up to there, unsat well below."""
    net, v, sizes = Net((1, 3)), "x", (3, 8, 8, 2)
    for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        v = net.Gemm(
            v, net.const(rng.normal(size=(m, n)) * (2 / n) ** 0.5), net.const(rng.normal(size=m) * 0.3), transB=1
        )
        v = net.Relu(v) if k < 2 else v
    graph = net.graph()
    points = rng.uniform(-1, 1, size=(400, 3)).astype(np.float32)
    points[:8] = [[int(b) * 2 - 1 for b in f"{k:03b}"] for k in range(8)]
    y = Scorer(graph).many(points)
    best = [Fraction(float(v)) for v in points[int(np.argmin(y[:, 0]))]]
    low, wide = value_at(graph, best)[0], float(np.ptp(y[:, 0]))
    second = (Row((), ((1, "1"),), decimal(Fraction(float(y[:, 1].min() - np.ptp(y[:, 1]))), 9)),)

    def query(bound: Fraction) -> Query:
        unsafe = ((Row((), ((0, "1"),), decimal(bound, 30)),), second)[:conjunctions]
        instance = Instance("claim", 0, graph, (("-1", "1"),) * 3, unsafe, outputs=2)
        return query_of(instance.onnx(), instance.vnnlib())

    for share in (0.02, 0.05, 0.1, 0.2, 0.4, 1.0):
        true = query(low - Fraction(share * wide))
        verdict = verify(true, Settings(workers=1, split=split, attack=False), None, Budget.seconds(1.0))
        if isinstance(verdict, Safe):
            return Claim(true, query(low + Fraction(wide) / 10**9), json.loads(to_text(verdict.proof)))
    raise AssertionError("no proof below the least value of a small network")


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything stands in a JSON value."""
    out = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, v in items:
        out += paths(v, (*at, k))
    return out


def inside(value: Any, at: tuple[Any, ...]) -> Any:
    for k in at:
        value = value[k]
    return value


def mutate_json(data: dict[str, Any], rng: Rng) -> None:
    """One change anywhere, in place."""
    at = pick(rng, paths(data))
    owner, key = inside(data, at[:-1]), at[-1]
    kind, value = int(rng.integers(5)), owner[key]
    if kind == 0:
        owner[key] = pick(rng, STRANGE)
    elif kind == 1 and isinstance(owner, dict):
        other = pick(rng, list(owner))
        owner[key], owner[other] = owner[other], owner[key]
    elif kind == 1:
        del owner[key]
    elif isinstance(value, bool) or value is None:
        owner[key] = pick(rng, STRANGE)
    elif isinstance(value, (int, float)):
        change = pick(rng, (lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 2, lambda v: v * (1 + 1e-9)))
        owner[key] = change(value)
    elif isinstance(value, str):
        owner[key] = mutate_text(value, rng)
    elif isinstance(value, list):
        owner[key] = mutate_list(value, rng)
    else:
        value.pop(pick(rng, list(value)), None) if value else owner.pop(key)


def mutate_list(value: list[Any], rng: Rng) -> list[Any]:
    if not value:
        return [pick(rng, STRANGE)]
    i, j = (int(v) for v in rng.integers(len(value), size=2))
    kind = int(rng.integers(6))
    if kind == 0:
        return value[:i] + value[i + 1 :]
    if kind == 1:
        return [*value, value[i]]
    if kind == 2:
        out = list(value)
        out[i], out[j] = out[j], out[i]
        return out
    return [[value], value[::-1], [*value[:i], [value[i]], *value[i + 1 :]]][kind - 3]


def mutate_text(value: str, rng: Rng) -> str:
    """Flags, hashes, and packed arrays: other bytes of the same or another length."""
    try:
        raw = bytearray(zlib.decompress(base64.b64decode(value, validate=True)))
    except (ValueError, zlib.error):
        raw = bytearray()
    if raw and rng.random() < 0.8:
        k = int(rng.integers(len(raw)))
        raw[k] = int(rng.integers(256))
        cut = raw if rng.random() < 0.7 else raw[: int(rng.integers(len(raw)))] if rng.random() < 0.5 else raw * 2
        return base64.b64encode(zlib.compress(bytes(cut))).decode()
    if not value:
        return "1"
    k = int(rng.integers(len(value)))
    return pick(rng, (value[:k] + pick(rng, "01aZ=\x00\u00e9") + value[k + 1 :], value[:k], value + value[:k]))


def mutate_proof(data: dict[str, Any], rng: Rng) -> None:
    """One change that keeps the form, of what a proof claims: trees, thresholds, places, weights, flags."""
    if not isinstance(data.get("trees"), list) or not data["trees"]:
        return mutate_json(data, rng)
    tree = pick(rng, data["trees"])
    kind, n = int(rng.integers(11)), len(tree["node"])
    k = int(rng.integers(n))
    refutations = tree["refutations"]
    if kind == 0:
        tree["left"], tree["right"] = tree["right"], tree["left"]
    elif kind == 1:
        tree["threshold"][k] += float(pick(rng, (1e-9, -1e-9, 0.1, -0.1, 10.0, -10.0)))
    elif kind == 2:
        j = int(rng.integers(n))
        for name in ("left", "right"):  # two subtrees change places
            row = [j if v == k else k if v == j else v for v in tree[name]]
            tree[name] = row
    elif kind == 3 and refutations:
        pick(rng, refutations)["at"] = int(rng.integers(n))
    elif kind == 4 and refutations:
        r = pick(rng, refutations)
        r["weights"] = [w * float(pick(rng, (0.0, 0.5, 2.0, 1e6))) for w in r["weights"]]
    elif kind == 5 and refutations:
        r = pick(rng, refutations)
        r["margin"] = 1e9
        r["beta"] = [[int(rng.integers(n)), float(pick(rng, (0.5, 10.0, 1e6)))]]
    elif kind == 6 and refutations:
        refutations[:] = [r for r in refutations if rng.random() < 0.7]
    elif kind == 7:
        for name in ("clip", "refresh"):
            tree[name] = "".join(pick(rng, "01") for _ in tree[name])
    elif kind == 8:
        tree["index"][k], tree["node"][k] = int(rng.integers(6)), int(rng.integers(6))
    elif kind == 9:
        tree["conjunctions"] = pick(rng, ([], [0], [1], [0, 0], None, [0, 1]))
    elif tree.get("tightenings"):
        t = pick(rng, tree["tightenings"])
        t["at"] = int(rng.integers(n))
        t["side"] = mutate_text(t["side"], rng)
    return None


def proof_block(known: list[Claim], seeds: range) -> Counter[str]:
    """Mutants of these seeds against both claims of one of the proofs."""
    out: Counter[str] = Counter()
    for seed in seeds:
        rng = np.random.default_rng([seed, 3])
        claim = pick(rng, known)
        data = json.loads(json.dumps(claim.proof))
        for _ in range(int(rng.integers(1, 4))):
            try:
                (mutate_proof if rng.random() < 0.6 else mutate_json)(data, rng)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
                mutate_json(data, rng)
        whole = to_packed(from_text(json.dumps(claim.proof)), pick(rng, (None, 1)))
        packed = mutate_packed(whole, rng, lambda rng: pick(rng, STRANGE))
        for word, query in (("true", claim.true), ("false", claim.false)):
            if isinstance(data, dict) and "property" in data and word == "false":
                data["property"] = query.property_hash
            if word == "false":  # of the same length
                packed = packed.replace(claim.true.property_hash.encode(), query.property_hash.encode())
            for form, stated in (("", json.dumps(data)), ("packed ", packed)):
                answer = f"{word} claim: {form}{offered(stated, query)}"
                out[answer] += 1
                if answer.startswith("false") and "accepted" in answer or "traceback" in answer:
                    out[f"first bad seed {seed}"] += not any(k.startswith("first") for k in out)
    return out


def offered(stated: str | bytes, query: Query) -> str:
    """What the checker says about a proof as text or packed."""
    try:
        proof = from_text(stated) if isinstance(stated, str) else from_packed(stated)
    except ProofError:
        return "malformed"
    except Exception as error:  # noqa: BLE001 - what must not happen
        print(f"traceback while reading: {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"
    try:
        return "accepted" if check(proof, query, Budget.seconds(3.0)).accepted else "rejected"
    except Exception as error:  # noqa: BLE001 - what must not happen
        print(f"traceback while checking: {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"


# -- networks and properties -------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        k = int(rng.integers(len(out))) if out else 0
        kind = int(rng.integers(5))
        if kind == 0 and out:
            out[k] = int(rng.integers(256))
        elif kind == 1:
            del out[k : k + int(rng.integers(1, 9))]
        elif kind == 2:
            out[k:k] = bytes(rng.integers(256, size=int(rng.integers(1, 9))).astype(np.uint8))
        elif kind == 3:
            out = out[:k] if rng.random() < 0.3 else out
        elif out:
            out[k] ^= 1 << int(rng.integers(8))
    return bytes(out)


OPS = (
    "Relu Add Mul Div Sub MatMul Gemm Conv MaxPool AveragePool Flatten Reshape Transpose Concat Split Slice Gather Pad "
    "Resize Upsample Softmax Sigmoid Clip Cast Shape Constant ConstantOfShape Expand Tile Squeeze Unsqueeze ReduceSum "
    "ReduceMax Where Equal Identity Dropout BatchNormalization DequantizeLinear QuantizeLinear LSTM If Loop Nonsense"
).split()
SIZES = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))


def mutate_onnx(data: bytes, rng: Rng) -> bytes:
    """One to three changes of the graph, or of its bytes."""
    import onnx

    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    model = onnx.load_from_string(data)
    for _ in range(int(rng.integers(1, 4))):
        try:
            _mutate_model(model, rng)
        except (ValueError, TypeError, IndexError):
            continue
    return bytes(model.SerializeToString())


def _mutate_model(model: Any, rng: Rng) -> None:
    from onnx import helper

    graph = model.graph
    node = pick(rng, graph.node) if len(graph.node) else None
    tensor = pick(rng, graph.initializer) if len(graph.initializer) else None
    kind = int(rng.integers(14))
    names = ["", "x", "nowhere", *(v for n in graph.node for v in (*n.input, *n.output))]
    if kind == 0 and node is not None:
        node.op_type = pick(rng, OPS)
    elif kind == 1 and node is not None and len(node.input):
        node.input[int(rng.integers(len(node.input)))] = pick(rng, names)
    elif kind == 2 and node is not None:
        node.input.append(pick(rng, names))
    elif kind == 3 and node is not None and len(node.input):
        del node.input[int(rng.integers(len(node.input)))]
    elif kind == 4 and node is not None and len(node.attribute):
        del node.attribute[int(rng.integers(len(node.attribute)))]
    elif kind == 5 and node is not None:
        keys = "axis axes perm pads strides dilations kernel_shape group alpha to mode keepdims transB auto_pad".split()
        value = pick(rng, (1, -1, 99, [0], [], [1, 2, 3], [-1] * 4, 1.5, float("nan"), "SAME_UPPER", "x", [2**62, 0]))
        try:
            node.attribute.append(helper.make_attribute(pick(rng, keys), value))
        except ValueError:
            return
    elif kind == 6 and tensor is not None:
        if len(tensor.dims):
            tensor.dims[int(rng.integers(len(tensor.dims)))] = int(pick(rng, SIZES))
        else:
            tensor.dims.append(int(pick(rng, SIZES)))
    elif kind == 7 and tensor is not None:
        tensor.data_type = int(rng.integers(0, 26))
    elif kind == 8 and tensor is not None:
        tensor.raw_data = mutate_bytes(tensor.raw_data, rng)
    elif kind == 9:
        dims = graph.input[0].type.tensor_type.shape.dim
        if len(dims):
            dims[int(rng.integers(len(dims)))].dim_value = int(pick(rng, SIZES))
    elif kind == 10:
        model.opset_import[0].version = int(pick(rng, (0, 1, 6, 9, 11, 13, 18, 25, 99, -1, 2**62)))
    elif kind == 11:
        graph.output[0].name = pick(rng, names)
    elif kind == 12 and node is not None:
        pick(rng, (lambda: graph.node.append(node), lambda: graph.node.remove(node)))()
    else:
        where = graph.input[0] if rng.random() < 0.5 else graph.output[0]
        where.type.tensor_type.elem_type = int(rng.integers(0, 24))


TOKENS = (
    "( ) ( ( ) ) assert declare-const X_0 Y_0 X_99 Y_-1 Real Int and or not <= >= < > = + - * / => ite let 0 1 -1 "
    '1e999 -1e-999 1e5000 NaN inf 0x10 1/3 .5 5. - +1 1e 1_0 00 -0 ; | " \u00e9 \x00 (check-sat) (exit) (or) (and) () '
    "(vnnlib-version <2.0>) (assert) (declare-const)"
).split(" ")


NUMBERS = ("0", "-0.0", "1e9", "1e-300", "-1e300", "1e308", "0.1", "3.4028235e38", "1e-45", "00012.500", "9" * 400)


def mutate_vnnlib(text: str, rng: Rng) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(text.encode(), rng)
    tokens = text.replace("(", " ( ").replace(")", " ) ").split()
    for _ in range(int(rng.integers(1, 4))):
        k, j = (int(v) for v in rng.integers(len(tokens), size=2)) if tokens else (0, 0)
        kind = int(rng.integers(10))
        numbers = [i for i, t in enumerate(tokens) if t.lstrip("-").replace(".", "", 1).isdigit()]
        if kind > 6 and numbers:
            at = pick(rng, numbers)
            tokens[at] = pick(rng, (tokens[at] + "1", "-" + tokens[at], tokens[at][:-1] or "0", *NUMBERS))
        elif kind == 0:
            tokens[k : k + 1] = [pick(rng, TOKENS)]
        elif kind == 1:
            del tokens[k : k + int(rng.integers(1, 6))]
        elif kind == 2:
            tokens.insert(k, pick(rng, TOKENS))
        elif kind == 3 and tokens:
            tokens[k], tokens[j] = tokens[j], tokens[k]
        elif kind == 4:
            tokens[k:k] = tokens[min(k, j) : max(k, j)]
        elif kind == 5:
            depth = int(pick(rng, (3, 50, 5000)))
            tokens[k:k] = ["(", pick(rng, ("and", "or", "+", "-", "not"))] * depth
        elif kind == 6:
            tokens = tokens[: max(k, 1)]
    return " ".join(tokens).encode("utf-8", "replace")


def bases(seed: int, count: int = 24) -> list[tuple[bytes, str]]:
    """Small instances of all families."""
    out: list[tuple[bytes, str]] = []
    k = 10_000 + seed * 1000
    while len(out) < count:
        k += 1
        try:
            instance = make(k)
        except NoInstance:
            continue
        out.append((instance.onnx(), instance.vnnlib()))
    return out


def process_block(kind: str, seed: int, seeds: range, keep: Path | None) -> Counter[str]:
    """Mutants of these seeds, each in a forked process that runs the command line."""
    from mucg4.cli.main import main

    known, out = bases(seed), Counter[str]()
    import_everything(*known[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in seeds:
            rng = np.random.default_rng([k, 5])
            onnx, vnnlib = pick(rng, known)
            data = (mutate_onnx(onnx, rng), vnnlib.encode()) if kind == "onnx" else (onnx, mutate_vnnlib(vnnlib, rng))
            for file, content in zip(("n.onnx", "p.vnnlib"), data, strict=True):
                (folder / file).write_bytes(content)
            word = run_command(folder, main)
            out[word] += 1
            if word.startswith("ILLEGAL"):
                print(f"{kind} mutant {k}: {word}", file=sys.stderr, flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    for file in ("n.onnx", "p.vnnlib", "err", "out"):
                        (keep / f"{kind}_{k}_{file}").write_bytes((folder / file).read_bytes())
    return out


def import_everything(onnx: bytes, vnnlib: str) -> None:
    """Load what a run loads, so that the children do not have to."""
    import onnxruntime  # noqa: F401
    import threadpoolctl  # noqa: F401

    import mucg4.check.walk
    import mucg4.cli.verify
    import mucg4.verify  # noqa: F401

    query_of(onnx, vnnlib)


def run_command(folder: Path, main: Callable[[list[str]], int]) -> str:
    """Run `verify` in a child process; how it ended."""
    files = {n: os.open(folder / n, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for n in ("out", "err")}
    started, pid = time.monotonic(), os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.dup2(files["out"], 1)
            os.dup2(files["err"], 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            options = ["--store", "off", "--timeout", str(TIMEOUT), "--memory", "4", "--workers", "1"]
            status = main(["verify", str(folder / "n.onnx"), str(folder / "p.vnnlib"), *options])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        except BaseException as error:  # noqa: BLE001 - what must not happen
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(99)
    for handle in files.values():
        os.close(handle)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - started > TIMEOUT + LATE:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "ILLEGAL: does not end"
        time.sleep(0.002)
    texts = [(folder / n).read_text(errors="replace") for n in ("out", "err")]
    return legal(os.waitstatus_to_exitcode(status), *texts)


def legal(status: int, out: str, err: str) -> str:
    """How a process ended; starts with ILLEGAL when it is not one of the two legal ways."""
    words, lines = out.split(), err.strip().splitlines()
    if status == 0 and words and words[0] in WORDS:
        return f"status 0: {words[0]}"
    if status == 2 and len(lines) == 1 and lines[0].startswith("mucg4: error:"):
        return "status 2: one line"
    return f"ILLEGAL: status {status}, {len(lines)} lines, {lines[-1][:120] if lines else out[:60]!r}"


# -- command line ------------------------------------------------------------------------------------------------------


def _block(task: tuple[str, int, range, Path | None]) -> Counter[str]:
    kind, seed, seeds, keep = task
    if kind == "proof":
        return proof_block(claims(12, seed), seeds)
    return process_block(kind, seed, seeds, keep)


def run(kind: str, count: int, seed: int, jobs: int, keep: Path | None = None) -> Counter[str]:
    """All mutants, in `jobs` processes; counts per outcome."""
    step = -(-count // jobs)
    first = seed * 1_000_003
    tasks = [(kind, seed, range(first + k * step, first + min(count, (k + 1) * step)), keep) for k in range(jobs)]
    if jobs == 1:
        return _block(tasks[0])
    total: Counter[str] = Counter()
    with mp.get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap_unordered(_block, tasks):
            total.update(part)
    return total


def bad(total: Counter[str]) -> int:
    """How many outcomes must not happen."""
    return sum(
        v
        for k, v in total.items()
        if k.startswith("ILLEGAL") or "traceback" in k or (k.startswith("false claim") and k.endswith("accepted"))
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.mutants", description=__doc__)
    parser.add_argument("kind", choices=("proof", "onnx", "vnnlib"))
    parser.add_argument("--count", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--jobs", type=int, default=2, metavar="J")
    parser.add_argument("--out", type=Path, default=Path("bench-out") / "mutants", help="where bad ones go")
    args = parser.parse_args()
    total = run(args.kind, args.count, args.seed, args.jobs, args.out)
    print("\n".join(f"{k}: {v}" for k, v in sorted(total.items())))
    print(f"bad: {bad(total)}")
    return 1 if bad(total) else 0


if __name__ == "__main__":
    sys.exit(main())
