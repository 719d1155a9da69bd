"""Several stored proofs that are each about a part of a query: together they leave nothing open."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_layers, formula_query, random_layers

from mucg4.check.walk import check
from mucg4.model.proof import Proof
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Safe
from mucg4.reuse.parts import joined, parts_of
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify
