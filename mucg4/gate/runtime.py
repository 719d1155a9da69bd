"""One network in onnxruntime, as a scorer runs it; other modules of this folder judge what it says.

A hostile file can make onnxruntime crash or hang, which would end this process without an answer. So a model is loaded
and run at one point in a forked child first (`mucg4.gate.child`) unless it is plainly ordinary, with nothing that
onnxruntime reads and the reader does not (`mucg4.gate.wire`). A child costs about 10 ms of processor time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.gate.child import ordeal
from mucg4.gate.wire import Skeleton, skeleton, with_outputs
from mucg4.model.network import Network, Original
from mucg4.ops.arrays import FloatArray

ELEMENTS: dict[str, Any] = {"tensor(float)": np.dtype(np.float32), "tensor(double)": np.dtype(np.float64)}
OTHERS = {
    "float16": "float16",
    "bool": "bool",
    **{f"{u}int{n}": f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}
INTEGERS = frozenset(f"tensor({name})" for name in OTHERS.values() if "int" in name)
THREADS = 12  # the other number of threads a scorer uses; given
REMEMBERED = 16  # points; not measured
MESSAGE = 160  # characters of onnxruntime's own words that are passed on; not measured
PATIENCE, PACE = 10.0, 5e6  # seconds a child may take, and bytes a second it reads besides; not measured


class Runtime:
    """One network in onnxruntime; the session is made on first use. Not thread-safe.

    Options are the default ones (a scorer's) with one thread; with `dequantised="float32"` products with weights
    behind DequantizeLinear are not run in 8-bit activations. Raises `InputError` (one line) when onnxruntime cannot
    load or run the model, or ends or does not return on it, `UnsupportedError` when the model has an element type other
    than float32 and float64. Several inputs and outputs are one behind the other (`Network.inputs`); inputs that the
    network does not hold, because nothing reads them, are zeros. Inputs of integers get the nearest ones.
    """

    def __init__(self, network: Network, dequantised: str = "default") -> None:
        self.network = network
        self.dequantised = dequantised
        self.dtype = np.dtype(network.element_type)
        self._session: Any = None
        self._threaded: Any = None
        self._feeds: list[tuple[str, int, int, tuple[int, ...]]] = []  # name, first and last entry of x, shape
        self._rest: dict[str, FloatArray] = {}  # of inputs that nothing reads
        self._batched = False
        self._outputs: list[str] = []
        self._visited: list[FloatArray] = []
        self.compared = 0  # rounds of points at which this network agreed with onnxruntime (`mucg4.gate.agreement`)
        self.inner: Any = None  # what that needs, for the next query

    def again(self) -> Runtime:
        """The same sessions for another query of this network, which nothing has been looked at yet for."""
        out = copy(self)
        out._visited = []
        return out

    def remember(self, x: FloatArray) -> None:
        """Keep some of the points `x (N, n)`, where a search has looked, for the agreement test."""
        self._visited = [*self._visited, *x[:: max(1, len(x) // 4)][:4].copy()][-REMEMBERED:]

    @property
    def visited(self) -> FloatArray | None:
        """Some of the points where a search has looked last, `(N, n)`."""
        return np.array(self._visited) if self._visited else None

    def outputs(self, x: FloatArray) -> FloatArray:
        """Outputs `(batch, m)` at `x (batch, n)`, in the model's element type.

        Points run one by one, or together when the model's first dimension is dynamic; a batched run may
        differ from a single one in the last bits, so the gate uses `single`.
        """
        points = self._cast(x)
        session = self._open()
        if self._batched and len(points) > 1:
            try:
                ys = session.run(self._outputs, self._feed(points))
            except _failures():  # the model is not written for batches after all
                self._batched = False
            else:
                if sum(map(np.size, ys)) == len(points) * self.network.output_size:
                    return np.concatenate([self._floats(y).reshape(len(points), -1) for y in ys], axis=1)
                self._batched = False
        return self.single(points)

    def single(self, x: FloatArray) -> FloatArray:
        """As `outputs`, but every point in a run of its own, exactly as a scorer replays it."""
        return self._each(self._open(), self._cast(x))

    def threaded(self, x: FloatArray) -> FloatArray:
        """As `single`, with twelve threads, which may add up in another order.

        The session is kept until `rest` is called: a process that forks must not hold threads.
        """
        self._open()
        if self._threaded is None:
            self._threaded = self._load(THREADS)
        return self._each(self._threaded, self._cast(x))

    def rest(self) -> None:
        """End the threads that `threaded` started."""
        self._threaded = None

    @cached_property
    def file(self) -> Skeleton:
        """The wiring of the file, which onnxruntime has accepted."""
        self._open()
        return skeleton(self.network.model_bytes)

    def tensors(self, names: Sequence[str], sizes: Sequence[int]) -> Tensors:
        """The model without optimisations that also returns the tensors `names` of so many values."""
        session = self._load(1, False, [n for n in names if n not in self.file.outputs])
        return Tensors(self, session, tuple(names), tuple(sizes))

    def _each(self, session: Any, points: FloatArray) -> FloatArray:
        out = np.empty((len(points), self.network.output_size), dtype=self.dtype)
        for i, point in enumerate(points):
            ys = self._run(session, self._outputs, point)
            size = sum(map(np.size, ys))
            if size != out.shape[1]:
                raise InputError(f"onnxruntime returns {size} values, but the network has {out.shape[1]} outputs")
            out[i] = np.concatenate([np.ravel(self._floats(y)) for y in ys])
        return out

    def _floats(self, y: Any) -> FloatArray:
        """One output's values; integers that the element type may not hold are nan."""
        values = np.asarray(y)
        if values.dtype.kind not in "iu":
            return values
        most = 2.0 ** (np.finfo(self.dtype).nmant + 1)
        return np.where(abs(values.astype(np.float64)) <= most, values.astype(self.dtype), np.nan).astype(self.dtype)

    def _feed(self, points: FloatArray) -> dict[str, FloatArray]:
        """What the model is given: one point, or several along a dynamic first dimension."""
        out = dict(self._rest)
        for name, start, end, shape in self._feeds:
            stacked = (len(points) * shape[0], *shape[1:]) if shape else ()
            part = np.ascontiguousarray(points[:, start:end]).reshape(stacked)
            out[name] = np.rint(part).astype(self.network.integers) if self.network.integers else part
        return out

    def _run(self, session: Any, names: Sequence[str], point: FloatArray) -> list[Any]:
        try:
            return session.run(list(names), self._feed(point[None]))  # type: ignore[no-any-return]
        except _failures() as error:
            raise InputError(f"onnxruntime cannot run the model: {_first_line(error)}") from error

    def _cast(self, x: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(np.asarray(x), dtype=self.dtype).reshape(-1, self.network.input_size)

    def _open(self) -> Any:
        if self._session is None:
            data = self.network.model_bytes
            if not data:
                raise InputError("the network has no ONNX bytes to run")
            import onnxruntime

            onnxruntime.set_default_logger_severity(4)
            if self.network.original is not None or not _ordinary(data):
                fate = ordeal(self._try, PATIENCE + len(data) / PACE)
                if fate:
                    raise InputError(f"onnxruntime {fate} on the model")
            session = self._load(1)
            self._inspect(session)
            self._session = session
        return self._session

    def _load(self, threads: int, optimised: bool = True, more: Sequence[str] = ()) -> Any:
        """A session of the file as it stands, with its weights where it keeps them; `more` outputs are added."""
        original = self.network.original
        data = self.network.model_bytes if original is None else original.data
        data = with_outputs(data, more) if more else data
        return _session(data, threads, optimised, original, self.dequantised == "float32")

    def _try(self) -> None:
        """What may crash: load, with and without optimisations, and run."""
        for optimised in (True, False):
            session = self._load(1, optimised)
            self._inspect(session)
            self._each(session, self._cast(np.zeros(self.network.input_size)))

    def _inspect(self, session: Any) -> None:
        """Learn how to call a session. Raises when its ends are not those that were read."""
        inputs, outputs = session.get_inputs(), list(session.get_outputs())
        while len(outputs) > 1 and outputs[-1].type not in ELEMENTS:  # behind all that a property speaks of
            outputs.pop()
        shapes = dict(self.network.inputs)
        if not shapes and len(inputs) != 1:
            raise UnsupportedError(f"the model has {len(inputs)} inputs, not one")
        self._feeds, self._rest, self._batched, at = [], {}, True, 0
        for given in inputs:
            dims = list(given.shape)
            if 0 in dims:
                raise InputError(f"the model's input shape {dims} holds no values")
            if shapes and given.name not in shapes:
                self._rest[given.name] = _zeros(given.type, [d if isinstance(d, int) else 1 for d in dims])
                self._batched = False
                continue
            shape = shapes.get(given.name) or tuple(d if isinstance(d, int) and d > 0 else 1 for d in dims)
            self._type(given.type, "input")
            self._feeds.append((given.name, at, at + prod(shape), shape))
            at += prod(shape)
            self._batched &= len(shape) > 1 and shape[0] == 1 and not (dims and isinstance(dims[0], int))
        if at != self.network.input_size or len(self._feeds) != max(1, len(shapes)):
            dims = [list(given.shape) for given in inputs]
            text = str(dims[0]) if len(dims) == 1 else f"{dims[:8]}"
            raise InputError(f"the model's input shape {text} does not hold {self.network.input_size} values")
        for made in outputs:
            if made.type not in INTEGERS:
                self._type(made.type, "output")
        self._outputs = [made.name for made in outputs]

    def _type(self, name: str, what: str) -> None:
        if what == "input" and self.network.integers:
            if name != f"tensor({self.network.integers})":
                raise InputError(f"the model's input is {name}, but it was read as {self.network.integers}")
            return
        dtype = ELEMENTS.get(name)
        if dtype is None:
            raise UnsupportedError(f"the model's {what} is {name}; only float and double are supported")
        if dtype != self.dtype:
            raise InputError(f"the model's {what} is {dtype.name}, but it was read as {self.dtype.name}")


def _zeros(name: str, shape: Sequence[int]) -> FloatArray:
    """What an input that nothing reads is given. Raises `UnsupportedError` for what is no tensor of numbers."""
    dtype = ELEMENTS.get(name, OTHERS.get(name.removeprefix("tensor(").removesuffix(")")))
    if dtype is None or prod(shape) > 2**26:
        raise UnsupportedError(f"the model has an input of {name} that nothing reads")
    return np.zeros(tuple(shape), dtype=dtype)


class Tensors:
    """Values of named tensors of a model, by onnxruntime without optimisations. Made by `Runtime.tensors`."""

    def __init__(self, runtime: Runtime, session: Any, names: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        self.runtime, self.session, self.names, self.sizes = runtime, session, names, sizes

    def outputs(self, x: FloatArray) -> FloatArray:
        """Outputs `(batch, m)` alone, by this session."""
        return self.runtime._each(self.session, self.runtime._cast(x))

    def values(self, x: FloatArray) -> list[FloatArray]:
        """At the points `x (batch, n)`, each in a run of its own: for every tensor its values `(batch, size)`.

        Raises `InputError` when a tensor has another number of values.
        """
        points = self.runtime._cast(x)
        out: list[FloatArray] = []
        if not self.names:
            return out  # onnxruntime would take no names for all outputs
        for i, point in enumerate(points):
            got = [np.asarray(v) for v in self.runtime._run(self.session, self.names, point)]
            for name, size, value in zip(self.names, self.sizes, got, strict=True):
                if value.size != size:
                    raise InputError(f"tensor {name!r} has {value.size} values in onnxruntime, but was read as {size}")
            out = out or [np.empty((len(points), v.size), dtype=v.dtype) for v in got]
            for kept, value in zip(out, got, strict=True):
                kept[i] = value.reshape(-1)
        return out


def _ordinary(data: bytes) -> bool:
    try:
        return not skeleton(data).oddity
    except InputError:
        return False


def _session(data: bytes, threads: int, optimised: bool, original: Original | None, accurate: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()  # optimisations stay at their default: a scorer's are
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if accurate:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if original is not None:
            names, contents = [name for name, _ in original.files], [content for _, content in original.files]
            options.add_external_initializers_from_files_in_memory(names, contents, [len(c) for c in contents])
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _failures() as error:
        raise InputError(f"onnxruntime cannot load the model: {_first_line(error)}") from error


def _failures() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own types have no common base below Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _first_line(error: Exception) -> str:
    """The error without status codes, places in the source and advice, at most a line long."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"\S+\.(cc|h):\d+ \S+(\([^)]*\))?( const)?(\(\))? ", "", text)
    text = re.sub(r" Please fix either the inputs/outputs or the model\.$", "", text)
    return text if len(text) <= MESSAGE else text[: MESSAGE - 3] + "..."
