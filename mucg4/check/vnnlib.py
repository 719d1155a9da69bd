"""The checker's own reader of VNN-LIB 1.0: text -> what its disjuncts let pass.

Nothing here is taken from `mucg4.read`: tokenizer, normal form and rounding analysis are others, so that a mistake
there is not made twice. A point belongs to a disjunct when its bounds and constraints hold exactly, and also when
its constraints on inputs hold evaluated in the model's input type (see `mucg4.model.query`). A bound `x <= c`
lets pass up to the largest of c, its nearest double, and that rounded to the type; a strict one not that end
itself. A constraint on inputs with sums and products is evaluated as written, products left to right, sums in any
order; `size` and `error` of a term are affine in |x|, the former bounds the sum of its monomials' absolute values,
the latter what evaluation is off by (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections
2.2 and 3.1; underflow is an absolute part). Where a partial result may overflow the constraint is believed to
say nothing. Constraints with outputs are taken in real arithmetic.

Hostile text: no recursion; depth, disjuncts, digits are limited. What is not known is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from fractions import Fraction
from itertools import chain, combinations, product
from math import inf, isfinite, nextafter, prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mucg4.check import plain
from mucg4.limits.budget import Budget
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.records import dataclass

DEPTH = 250  # open parentheses; not measured
MOST_DISJUNCTS = 1_000_000  # of the normal form; not measured
MOST_ATOMS = 10_000_000  # comparisons in all disjuncts that are written out; not measured
MOST_BITS = 200_000  # of one number; not measured
REMEMBERED = 50_000  # numbers of a text whose ends are kept; not measured

ZERO, ONE = Fraction(0), Fraction(1)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?", re.ASCII)
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
# Leading white space, then: comment | whole declaration | comparison of a variable and a number, perhaps all that is
# asserted | parenthesis | word | anything else.
_PIECE = re.compile(
    r"\s*(?:(;[^\n]*)|\(\s*declare-const\s+([XY]_\d+)\s+Real\s*\)"
    r"|(\(\s*assert\s*)?\(\s*([<>]=?)\s+([XY]_\d+)\s+([+-]?[.\d][^\s();\"|]*)\s*\)(?(3)\s*\))"
    r"|([()])|(\"[^\"]*\"|\|[^|]*\||[^\s();\"|]+)|(\S))",
    re.ASCII,
)
_COMMENT, _DECLARED, _COMPARED, _PARENTHESIS, _WORD, _OTHER = 1, 2, 6, 7, 8, 9  # groups of _PIECE; given
_SILENT = frozenset(
    (
        *("set-logic", "set-info", "set-option", "check-sat", "echo", "exit"),
        *(f"get-{what}" for what in ("model", "value", "assignment", "info", "option", "proof", "assertions")),
        *("get-unsat-core", "get-unsat-assumptions", "get-objectives"),
    )
)
_KEPT = frozenset(("not", "=>", "xor", "ite", "=", "distinct"))  # what stands in them is read when they are closed
_OPPOSITE = {"<=": ">", "<": ">=", ">=": "<", ">": "<=", "!=": "=", "=": "!=", "==": "!="}


class Refusal(Exception):
    """Why the text was not followed, or is not covered; one line."""


def _shown(word: object) -> str:
    text = str(word) if isinstance(word, str) else "a list"
    return repr(text if len(text) <= 30 else text[:27] + "...")


# --- terms, bounds and rows ------------------------------------------------------------------------------------


class Reach(NamedTuple):
    """`constant + sum inputs[i] |x_i|` with nonnegative coefficients."""

    inputs: dict[int, Fraction]
    constant: Fraction

    def at(self, far: Callable[[int], Fraction]) -> Fraction:
        return self.constant + sum((c * far(i) for i, c in self.inputs.items()), ZERO)

    def times(self, factor: Fraction) -> Reach:
        return Reach({i: c * factor for i, c in self.inputs.items()} if factor else {}, self.constant * factor)


def _total(parts: Iterable[Reach]) -> Reach:
    inputs: dict[int, Fraction] = {}
    constant = ZERO
    for part in parts:
        constant += part.constant
        for i, c in part.inputs.items():
            inputs[i] = inputs.get(i, ZERO) + c
    return Reach(inputs, constant)


def _is_zero(term: _Term) -> bool:
    return not term.form and not term.size.inputs and not term.constant and not term.size.constant


def _is_difference(term: _Term) -> bool:
    """Whether a term is the difference of two inputs, each of which occurs once: its sign is exact.

    With gradual underflow a difference rounds to 0 only where it is 0, and an overflow keeps the sign.
    """
    alike = {v: abs(c) for v, c in term.form.items()} == term.size.inputs
    return alike and sorted(term.form.values()) == [-1, 1] and not term.constant and not term.size.constant


NOWHERE = Reach({}, ZERO)
NOTHING = -1  # no variable has this number; given


class _Term(NamedTuple):
    """A linear term: coefficients (X_i is i, Y_j is -1 - j), constant, and what evaluating it may do."""

    form: dict[int, Fraction]
    constant: Fraction
    size: Reach
    error: Reach
    peak: Reach  # at least every partial result
    worked: bool  # more than signs were changed


class Bound(NamedTuple):
    """`x_input <= end` (upper) or `>= end`, `open` without it; the end is a double that is not inside the bound."""

    input: int
    upper: bool
    end: float
    open: bool


class Row(NamedTuple):
    """`direction . v + constant <= 0`, `< 0` where strict; `direction` is normalised, a number in the reader's list.

    `error`, `peak`: of a constraint on inputs, in the row's scale. The direction of no variable is `NOTHING`.
    """

    direction: int
    constant: Fraction
    strict: bool
    error: Reach
    peak: Reach


class _Formula(NamedTuple):
    """A conjunction: atoms, and disjunctions of conjunctions of atoms."""

    atoms: tuple[Bound | Row | bool, ...]
    factors: tuple[list[tuple[Bound | Row | bool, ...]], ...]


Direction = tuple[tuple[int, Fraction], ...]
Atom = Bound | Row | bool  # False: never true


def directed(form: Iterable[tuple[int, Fraction]]) -> tuple[Direction, Fraction]:
    """Sorted coefficients whose first has size 1, and the positive factor that was taken out."""
    pairs = sorted((v, c) for v, c in form if c)
    scale = abs(pairs[0][1])
    return tuple((v, c / scale) for v, c in pairs), scale


def _truth_value(item: Any) -> bool:
    """Whether words and lists stand for a formula."""
    head = item[0] if isinstance(item, tuple) and item else item
    return head in _OPPOSITE or head in ("true", "false", "and", "or", "not", "=>", "xor", "ite", "distinct")


# --- text -> atoms ---------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Shift and reduce: every closing parenthesis turns a list into a term, an atom or a formula."""

    text: str
    element_type: str
    declared: dict[str, int] = field(default_factory=dict)
    directions: dict[Direction, int] = field(default_factory=dict)
    named: list[Direction] = field(default_factory=list)
    atoms: list[Atom] = field(default_factory=list)  # hold in every disjunct
    factors: list[list[tuple[Atom, ...]]] = field(default_factory=list)  # of each, one holds
    # of equations, by the identity of their rows' `peak`: that, and the inputs that they read on one side only
    equations: dict[int, tuple[Reach, set[int]]] = field(default_factory=dict)
    ends: dict[str, tuple[float, bool, float, bool]] = field(default_factory=dict)
    written: int = 0  # atoms that were written out
    kept: int = 0  # open lists whose content is kept as it stands
    closed: bool = False  # by the command exit
    sides: plain.Sides = field(default_factory=plain.Sides)  # bounds that hold in every disjunct too
    pattern: ClassVar[re.Pattern[str]] = _PIECE

    def __post_init__(self) -> None:
        info = np.finfo(self.element_type)
        self.kind: Any = np.dtype(self.element_type).type
        self.unit, self.least = Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal)) / 2
        self.most = Fraction(float(info.max))

    def denied(self, x: FloatArray, row_holds: Callable[[Row], bool]) -> str | None:
        """None when what was read holds at inputs `x`, else one line; `row_holds` judges rows, which need outputs."""

        def holds(atom: Atom) -> bool:
            if isinstance(atom, Bound):
                at = float(x[atom.input])
                return (at < atom.end if atom.upper else at > atom.end) or (at == atom.end and not atom.open)
            return row_holds(atom) if isinstance(atom, Row) else atom

        if not (all(map(holds, self.atoms)) and self.sides.holds(x)):
            return "a constraint of the text does not hold at the point"
        if not all(any(all(map(holds, disjunct)) for disjunct in factor) for factor in self.factors):
            return "no disjunct of the text holds at the point"
        return None

    def run(self, budget: Budget | None) -> None:
        text, pos = self.text.rstrip(" \t\r\n\f\v"), 0
        while pos < len(text):
            if len(text) >= plain.LARGE and not self.closed:
                if budget is not None:
                    budget.poll()
                end = self.piece(text, pos)
                if end > pos:
                    pos = end
                    continue
            pos = self.forms(text, pos, budget)

    def forms(self, text: str, pos: int, budget: Budget | None) -> int:
        """Read commands one by one, all or as many as fill a piece; where that ended."""
        stack: list[list[Any]] = []
        stop = pos + plain.PIECE
        for count, m in enumerate(self.pattern.finditer(text, pos)):
            if not count & 0xFFF and budget is not None:
                budget.poll()
            which = m.lastindex
            if which == _COMPARED and not stack and m[3]:
                self.open_still()
                self.state(self.short(m[4], m[5], m[6]))
            elif which == _DECLARED and not stack:
                self.open_still()
                self.declare(m[2], "Real")
            elif which != _COMMENT:
                self.shift(stack, which, m)
            if not stack and m.end() >= stop:
                return m.end()
        if stack:
            raise Refusal("a parenthesis is never closed")
        return len(text)

    def piece(self, text: str, pos: int) -> int:
        """Take many declarations or bounds at once; where they end."""
        if text[pos : pos + 40].lstrip().startswith("(declare-const"):
            end, names = plain.declared(text, pos)
            forms = list(map(_VARIABLE.fullmatch, names))
            codes = {m[0]: int(m[2]) if m[1] == "X" else -1 - int(m[2]) for m in forms if m is not None}
            if not names or len(codes) < len(names) or not self.declared.keys().isdisjoint(codes):
                return pos
            self.declared.update(codes)
            return end
        return self.bounds(text, pos)

    def bounds(self, text: str, pos: int) -> int:
        """Take many bounds of inputs."""

        def end_of(number: str, upper: bool) -> tuple[float, bool]:
            return self.end(self.number(number), upper)

        return plain.piece(text, pos, self.codes, np.dtype(self.element_type), end_of, self.sides)

    def codes(self, names: Sequence[str]) -> IntArray | None:
        """The codes of variables, None where one is not declared."""
        found = list(map(self.declared.get, names))
        return None if None in found else np.array(found)

    def shift(self, stack: list[list[Any]], which: int | None, m: re.Match[str]) -> None:
        """Put a piece onto the stack, or reduce the list that it closes."""
        piece = m.group().lstrip()
        if which == _OTHER:
            raise Refusal(f"unexpected character {piece!r}")
        if which == _PARENTHESIS and piece == "(":
            if len(stack) == DEPTH:
                raise Refusal(f"parentheses nested deeper than {DEPTH}")
            if stack and not stack[0]:
                raise Refusal("a command that starts with a list")
            stack.append([])
        elif not stack or (which != _WORD and not stack[0] and which != _PARENTHESIS):
            raise Refusal(f"{_shown(piece)} stands outside a command")
        elif which == _PARENTHESIS:
            done = stack.pop()
            if not stack:
                self.command(done)
            else:
                stack[-1].append(self.close(done) if stack[0][0] == "assert" else tuple(done))
        elif which == _COMPARED and m[3] is None and stack[0][0] == "assert":
            stack[-1].append((m[4], m[5], m[6]) if self.kept else self.short(m[4], m[5], m[6]))
        elif which == _WORD and piece in _KEPT and stack[0] == ["assert"] and not stack[-1]:
            self.kept += 1
            stack[-1].append(piece)
        elif which == _WORD or stack[0][0] != "assert":
            stack[-1].append(piece)
        else:
            raise Refusal(f"{_shown(piece)} stands in an assertion")

    def close(self, done: list[Any]) -> Any:
        """What a list that is closed inside an assertion means; as it stands inside one that is kept."""
        if done and done[0] in _KEPT:
            self.kept -= 1
            return tuple(done) if self.kept else self.settle(tuple(done), False)
        return tuple(done) if self.kept else self.reduce(done)

    def open_still(self) -> None:
        if self.closed:
            raise Refusal("something follows the command exit")

    def sizes(self) -> tuple[int, int]:
        """How many inputs are declared, and the least number of outputs; raises when inputs in between are not."""
        codes = self.declared.values()
        inputs, outputs = max(codes, default=-1) + 1, max(0, -min(codes, default=0))
        if inputs != sum(c >= 0 for c in codes):
            raise Refusal("some inputs are not declared, but ones with a higher number are")
        return max(inputs, 0), outputs

    def misses(self, inputs: int, outputs: int) -> bool:
        """Whether a network of this size is none that the text can speak of."""
        mine = self.sizes()
        return mine[0] != inputs or mine[1] > outputs

    # -- commands

    def command(self, items: list[Any]) -> None:
        head = items[0] if items else None
        if head == "exit":
            self.closed = True
        elif head not in _SILENT:
            self.open_still()
        if head == "assert":
            if len(items) != 2:
                raise Refusal("assert takes one formula")
            self.state(items[1])
        elif head == "declare-const" and len(items) == 3:
            self.declare(items[1], items[2])
        elif head == "declare-fun" and len(items) == 4 and items[2] == ():
            self.declare(items[1], items[3])
        elif head == "vnnlib-version" and len(items) == 2 and str(items[1]).startswith("<1."):
            pass
        elif head not in _SILENT:
            raise Refusal(f"command {_shown(head)} is not known here")

    def state(self, item: Any) -> None:
        formula = self.formula(item)
        self.atoms.extend(formula.atoms)
        self.factors.extend(formula.factors)

    def declare(self, name: Any, sort: Any) -> None:
        m = _VARIABLE.fullmatch(name) if isinstance(name, str) else None
        if m is None or sort != "Real" or name in self.declared:
            raise Refusal(f"declaration of {_shown(name)} is not understood")
        self.declared[name] = int(m[2]) if m[1] == "X" else -1 - int(m[2])

    # -- lists

    def reduce(self, items: list[Any]) -> Any:
        """What a list inside an assertion means."""
        head = items[0] if items and isinstance(items[0], str) else ""
        args = items[1:]
        if head in _OPPOSITE or head == "distinct":
            return self.relation(head, [self.term(a) for a in args], False)
        if head in ("and", "or") and args:
            parts = [self.formula(a) for a in args]
            return self.all_of(parts) if head == "and" else self.one_of(parts)
        if head in ("+", "-", "*") and args:
            return self.arithmetic(head, [self.term(a) for a in args])
        if head == "/" and len(args) > 1:
            return self.quotient([self.term(a) for a in args])
        raise Refusal(f"operator {_shown(head)} is not known here" if head and args else "a list without an operator")

    def relation(self, op: str, terms: list[_Term], no: bool) -> Atom | _Formula:
        """Each term against the next, for `distinct` against all later ones; `no`: that this does not hold."""
        if len(terms) < 2 or (op == "!=" and len(terms) > 2):
            raise Refusal(f"{op!r} with {len(terms)} arguments")
        ways = combinations(terms, 2) if op == "distinct" else zip(terms, terms[1:], strict=False)
        op = "!=" if op == "distinct" else op
        op = _OPPOSITE[op] if no else op
        found = []
        for a, b in ways:
            found.append(self.compare(op, a, b))
            self.count(1)
        if len(found) == 1:
            return found[0]
        parts = [self.formula(f) for f in found]
        return self.one_of(parts) if no else self.all_of(parts)

    def count(self, atoms: int) -> None:
        self.written += atoms
        if self.written > MOST_ATOMS:
            raise Refusal(f"more than {MOST_ATOMS} comparisons once the formulas are written out")

    def settle(self, item: Any, no: bool) -> Any:
        """A formula that was kept as words and lists, or its negation; nested no deeper than lists may be."""
        self.count(1)
        head, args = (item[0], item[1:]) if isinstance(item, tuple) and item else (item, ())
        if head in ("true", "false") and not args:
            return (head == "true") != no
        if head == "not" and len(args) == 1:
            return self.settle(args[0], not no)
        if head in ("and", "or") and args:
            parts = [self.formula(self.settle(a, no)) for a in args]
            return self.all_of(parts) if (head == "and") != no else self.one_of(parts)
        if head == "=>" and len(args) > 1:
            parts = [self.formula(self.settle(a, not no)) for a in args[:-1]]
            parts.append(self.formula(self.settle(args[-1], no)))
            return self.all_of(parts) if no else self.one_of(parts)
        if head in ("xor", "ite") and len(args) == (2 if head == "xor" else 3):
            # exactly one of two; the second where the first holds, else the third. Their negations have the same form.
            a, b, c = (args[0], args[1], args[1]) if head == "xor" else args
            on = self.formula(self.settle(b, no if head == "ite" else not no))
            off = self.formula(self.settle(c, no))
            yes = self.formula(self.settle(a, False))
            return self.one_of([self.all_of([yes, on]), self.all_of([self.formula(self.settle(a, True)), off])])
        if args and head in ("=", "==", "!=", "distinct") and all(map(_truth_value, args)):
            return self.alike(head in ("=", "=="), args, no)
        if head in _OPPOSITE or head == "distinct":
            return self.relation(head, [self.worth(a) for a in args], no)
        raise Refusal(f"{_shown(head)} stands for a formula")

    def alike(self, equal: bool, args: Sequence[Any], no: bool) -> Any:
        """Truth values that are all the same, or that all differ, which more than two never do."""
        if len(args) < 2:
            raise Refusal("a comparison of one formula")
        if not equal:
            return no if len(args) > 2 else self.settle(("xor", *args), no)
        parts = [self.formula(self.settle(("xor", a, b), not no)) for a, b in zip(args, args[1:], strict=False)]
        return self.one_of(parts) if no else self.all_of(parts)

    def worth(self, item: Any) -> _Term:
        """A term that was kept as words and lists."""
        if not isinstance(item, tuple):
            return self.term(item)
        if not item or item[0] not in ("+", "-", "*", "/"):
            raise Refusal("a formula stands for a term")
        return self.term(self.reduce([item[0], *(self.worth(a) for a in item[1:])]))

    def all_of(self, parts: Sequence[_Formula]) -> _Formula:
        atoms = tuple([a for p in parts for a in p.atoms])
        return _Formula(atoms, tuple([f for p in parts for f in p.factors]))

    def one_of(self, parts: Sequence[_Formula]) -> _Formula:
        if len(parts) == 1:
            return parts[0]
        if sum(prod(len(f) for f in p.factors) for p in parts) > MOST_DISJUNCTS:
            raise Refusal(f"more than {MOST_DISJUNCTS} disjuncts")
        disjuncts: list[tuple[Atom, ...]] = []
        for part in parts:
            for choice in product(*part.factors):
                disjuncts.append(tuple(chain(part.atoms, *choice)))
                self.written += len(disjuncts[-1])
                if self.written > MOST_ATOMS:
                    raise Refusal(f"more than {MOST_ATOMS} comparisons once the disjunctions are written out")
        return _Formula((), (disjuncts,))

    def formula(self, item: Any) -> _Formula:
        if isinstance(item, _Formula):
            return item
        if isinstance(item, (Bound, Row, bool)):
            return _Formula((item,), ())
        if item in ("true", "false"):
            return _Formula((), ()) if item == "true" else _Formula((False,), ())
        raise Refusal(f"{_shown(item)} stands for a formula")

    def variable(self, name: str) -> int:
        code = self.declared.get(name)
        if code is None:
            raise Refusal(f"variable {_shown(name)} is not declared")
        return code

    def number(self, word: str) -> Fraction:
        m = _NUMBER.fullmatch(word) if len(word) <= 2000 else None
        if m is None:
            raise Refusal(f"{_shown(word)} is neither a number nor a variable")
        if m[1] and abs(int(m[1])) > 400:
            raise OverflowError
        value = Fraction(word)
        if abs(value) >= 10**308:
            raise OverflowError
        return value

    # -- terms

    def term(self, item: Any) -> _Term:
        if isinstance(item, _Term):
            return item
        if not isinstance(item, str):
            raise Refusal("a formula stands for a term")
        if _VARIABLE.fullmatch(item):
            code = self.variable(item)
            size = Reach({code: ONE}, ZERO) if code >= 0 else NOWHERE
            return _Term({code: ONE}, ZERO, size, NOWHERE, size, False)
        return self.fixed(self.number(item))

    def fixed(self, value: Fraction) -> _Term:
        """A number, and what storing it in the element type loses."""
        if abs(value) >= 10**308:
            raise OverflowError
        size = Reach({}, abs(value))
        stored = float(self.kind(float(value)))
        error = Reach({}, abs(Fraction(stored) - value)) if isfinite(stored) else Reach({}, abs(value))
        peak = _total([size, error]) if isfinite(stored) else Reach({}, 2 * self.most)
        return _Term({}, value, size, error, peak, False)

    def arithmetic(self, op: str, args: list[_Term]) -> _Term:
        total = args[0]
        if op == "*":
            for factor in args[1:]:
                total = self.times(total, factor)
            return total
        if op == "-":
            rest = [a._replace(form={v: -c for v, c in a.form.items()}, constant=-a.constant) for a in args]
            args = rest if len(args) == 1 else [total, *rest[1:]]
        if len(args) == 1:
            return args[0]
        form: dict[int, Fraction] = {}
        for a in args:
            for v, c in a.form.items():
                form[v] = form.get(v, ZERO) + c
        size = _total([a.size for a in args])
        before = _total([a.error for a in args])
        steps = (len(args) - 1) * self.unit
        if steps > Fraction(1, 2):
            raise Refusal(f"a sum of {len(args)} terms is too long for {self.element_type}")
        error = _total([before, _total([size, before]).times(steps / (1 - steps))])
        peak = _total([*(a.peak for a in args), size, error])
        return _Term(form, sum((a.constant for a in args), ZERO), size, error, peak, True)

    def quotient(self, args: list[_Term]) -> _Term:
        """Numbers by numbers: a number as if it were written. A term by a whole number: times its inverse."""
        by = ONE
        for a in args[1:]:
            if a.form or not a.constant:
                raise Refusal("a division by zero" if not a.form else "a division by a variable")
            by *= a.constant
            if max(by.numerator.bit_length(), by.denominator.bit_length()) > MOST_BITS:
                raise Refusal("a number is too long")
        top = args[0]
        if not top.form and not top.size.inputs:
            return self.fixed(top.constant / by)
        if by.denominator > 1 or abs(by) > 1 << 24 or len(args) > 2:
            raise Refusal("a term divided by other than one whole number")
        return self.times(top, self.fixed(1 / by))

    def times(self, a: _Term, b: _Term) -> _Term:
        if a.form and b.form:
            raise Refusal("a product of variables")
        fixed, other = (b, a) if a.form else (a, b)
        factor, c, e = fixed.constant, fixed.size.constant, fixed.error.constant
        size = other.size.times(abs(c))
        error = _total([other.error.times(c + e), other.size.times(e)])
        if abs(factor) != 1 or fixed.worked:
            error = _total([error, _total([size, error]).times(self.unit), Reach({}, self.least)])
        constant = other.constant * factor
        if max(constant.numerator.bit_length(), constant.denominator.bit_length()) > MOST_BITS:
            raise Refusal("a number is too long")
        form = {v: w * factor for v, w in other.form.items()}
        return _Term(form, constant, size, error, _total([a.peak, b.peak, size, error]), True)

    def numbered(self, direction: Direction) -> int:
        """The direction's number, a new one where it has none."""
        number = self.directions.setdefault(direction, len(self.directions))
        if number == len(self.named):
            self.named.append(direction)
        return number

    # -- comparisons

    def short(self, op: str, name: str, number: str) -> Atom | _Formula:
        """`op variable number`, the form that fills almost every file."""
        code = self.variable(name)
        if code < 0:
            return self.compare(op, self.term(name), self.term(number))
        upper = op[0] == "<"
        if number not in self.ends:
            if len(self.ends) == REMEMBERED:
                self.ends.clear()
            value = self.number(number)
            self.ends[number] = *self.end(value, False), *self.end(value, True)
        end, inside = self.ends[number][2:] if upper else self.ends[number][:2]
        return Bound(code, upper, end, inside or len(op) == 1)

    def end(self, value: Fraction, upper: bool) -> tuple[float, bool]:
        """Where a plain bound ends: the double next to the outermost number that passes; whether it is beyond all."""
        near = float(value)
        stored = float(self.kind(near))
        out = near if not isfinite(stored) else max(near, stored) if upper else min(near, stored)
        if out == near:
            exact = Fraction(out)
            if (exact < value) if upper else (exact > value):
                return nextafter(out, inf if upper else -inf), True
        return out, False

    def compare(self, op: str, left: _Term, right: _Term) -> Atom | _Formula:
        form = dict(left.form)
        for v, c in right.form.items():
            form[v] = form.get(v, ZERO) - c
        form = {v: c for v, c in form.items() if c}
        if _is_zero(right) and _is_difference(left):
            left = left._replace(error=NOWHERE, peak=left.size, worked=False)
        elif _is_zero(left) and _is_difference(right):
            right = right._replace(error=NOWHERE, peak=right.size, worked=False)
        less = left._replace(
            form=form,
            constant=left.constant - right.constant,
            size=_total([left.size, right.size]),
            error=_total([left.error, right.error]),
            peak=_total([left.peak, right.peak]),
            worked=left.worked or right.worked,
        )
        more = less._replace(form={v: -c for v, c in form.items()}, constant=-less.constant)
        if op in ("=", "=="):
            self.equations[id(less.peak)] = less.peak, left.size.inputs.keys() ^ right.size.inputs.keys()
        if op in ("<=", "<"):
            return self.atom(less, op == "<")
        if op in (">=", ">"):
            return self.atom(more, op == ">")
        if op == "!=":
            sides = [self.formula(self.atom(t, True)) for t in (less, more)]
            return self.one_of(sides)
        return self.all_of([self.formula(self.atom(t, False)) for t in (less, more)])

    def atom(self, term: _Term, strict: bool) -> Atom | _Formula:
        """`term <= 0` (`< 0`)."""
        variables = sorted(term.form)
        if not variables and term.size.inputs:  # inputs that cancel
            return Row(NOTHING, term.constant, strict, term.error, term.peak)
        if not variables:
            off = self.off(term.error, term.peak, lambda _: ZERO)
            if off is None:  # believed to say nothing
                return _Formula((), ())
            value = term.constant - off
            return _Formula((), ()) if value < 0 or (value == 0 and not strict) else False
        direction, scale = directed(term.form.items())
        number = self.numbered(direction)
        by_inputs = variables[0] >= 0
        error, peak = (term.error.times(1 / scale), term.peak) if by_inputs else (NOWHERE, NOWHERE)
        row = Row(number, term.constant / scale, strict, error, peak)
        if len(variables) > 1 or not by_inputs:
            return row
        slope, value = direction[0][1], -term.constant / (direction[0][1] * scale)
        if not term.worked:
            end, inside = self.end(value, slope > 0)
            return Bound(variables[0], slope > 0, end, inside or strict)
        far = self.far(row, variables[0], term.size.times(1 / scale))
        if far is None:
            return row
        end, inside = _outward(slope * far, slope > 0)
        return self.all_of([self.formula(Bound(variables[0], slope > 0, end, inside)), self.formula(row)])

    def far(self, row: Row, index: int, size: Reach) -> Fraction | None:
        """The largest `slope x` that passes `slope x + constant <= error`, slope 1 or -1; None when none can be told.

        Where all terms of x have one sign a partial sum that overflows far outside makes the comparison false;
        between a negative end and 0 nothing overflows when nothing does at the end.
        """
        grows = row.error.inputs.get(index, ZERO)
        if size.inputs != {index: ONE} or grows >= 1 or row.peak.constant > self.most:
            return None
        room = row.error.constant - row.constant
        if room >= 0:
            return room / (1 - grows)
        end = room / (1 + grows)
        alone = row.peak.inputs.keys() <= {index}
        return end if alone and row.peak.at(lambda _: -end) <= self.most else None

    def off(self, error: Reach, peak: Reach, far: Callable[[int], Fraction]) -> Fraction | None:
        """What evaluating a row may be off by; None when something may overflow."""
        if not error.constant and not any(error.inputs.values()):
            return ZERO
        return error.at(far) if peak.at(far) <= self.most else None


def _outward(value: Fraction, upper: bool) -> tuple[float, bool]:
    """The nearest double that is not inside, and whether it is beyond the value."""
    near = float(value)
    exact = Fraction(near)
    if (exact < value) if upper else (exact > value):
        return nextafter(near, inf if upper else -inf), True
    return near, exact != value
