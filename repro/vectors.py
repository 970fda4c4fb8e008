"""Vectors of float32 for the inner loops of compiled kernels: numba has no word for them.

The compiler turns most loops into vector instructions by itself, but not one whose sums are a tile
of a matrix, and not at the full width of every processor. :class:`Vectors` writes the instructions
of such a loop as it is compiled.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic


def _lanes() -> int:
    try:
        return 16 if binding.get_host_cpu_features().get("avx512f") else 8
    except RuntimeError:  # LLVM does not know every processor
        return 8


LANES = _lanes()

_FLOAT, _BYTE, _INT, _LONG = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


class _Cache(FunctionCache):
    """Numba's cache, which by itself sees changes in the file of the compiled function only."""

    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def _index_key(self, *signature):
        return *super()._index_key(*signature), self.source, LANES


def compiled(function=None, **options):
    """Compile a function that runs without the GIL; what the compiler made is kept on disk."""
    if function is None:
        return partial(compiled, **options)
    dispatcher = njit(nogil=True, **options)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


def aligned(rows: int, columns: int) -> np.ndarray:
    """Return zeros, rows x columns, that begin at a cache line."""
    space = np.zeros(rows * columns + 16, np.float32)
    skip = -space.ctypes.data % 64 // 4
    return space[skip : skip + rows * columns].reshape(rows, columns)


class Vectors:
    """Instructions on ``LANES`` values at a time; ``args`` has arrays as pointers.

    A place in an array is a sum of numbers and values, given one after the other.
    """

    def __init__(self, context, builder, signature, args):
        self.builder, self.done = builder, context.get_dummy_value()
        self.args = [
            context.make_array(kind)(context, builder, arg).data if hasattr(kind, "dtype") else arg
            for kind, arg in zip(signature.args, args, strict=True)
        ]

    zero = ir.VectorType(_FLOAT, LANES)(None)
    iota = ir.VectorType(_INT, LANES)([_INT(lane) for lane in range(LANES)])
    none = _LONG(0)
    number, integer, long = _FLOAT, _INT, _LONG

    def whole(self, count):
        """Return how many vectors so many values are."""
        return self.builder.udiv(count, _LONG(LANES))

    def times(self, a, number: int):
        """Return a multiple of a value."""
        return self.builder.mul(a, _LONG(number))

    def _at(self, pointer, steps, kind):
        for step in steps:
            step = _LONG(step) if isinstance(step, int) else step
            pointer = self.builder.gep(pointer, [step])
        return self.builder.bitcast(pointer, kind.as_pointer())

    def load(self, pointer, *place):
        """Return the vector that begins at a place."""
        return self.builder.load(self._at(pointer, place, self.zero.type), align=4)

    def store(self, value, pointer, *place):
        """Write a vector, or a single value, to a place."""
        self.builder.store(value, self._at(pointer, place, value.type), align=4)

    def value(self, pointer, *place):
        """Return the one value at a place."""
        return self.builder.load(self._at(pointer, place, _FLOAT))

    def broadcast_at(self, pointer, *place):
        """Return a vector with the value at a place in all lanes."""
        return self.broadcast(self.value(pointer, *place))

    def lane(self, vector, number: int):
        """Return one value of a vector."""
        return self.builder.extract_element(vector, _INT(number))

    def broadcast(self, value):
        """Return a vector with a value in all lanes."""
        first = ir.VectorType(value.type, LANES)(ir.Undefined)
        first = self.builder.insert_element(first, value, _INT(0))
        return self.shuffle(first, first, [0] * LANES)

    def shuffle(self, a, b, lanes):
        """Return the numbered lanes of ``a`` followed by ``b``."""
        lanes = ir.VectorType(_INT, len(lanes))([_INT(lane) for lane in lanes])
        return self.builder.shuffle_vector(a, b, lanes)

    def multiply(self, a, b):
        """Return a b."""
        return self.builder.fmul(a, b, flags=("contract",))

    def multiply_add(self, a, b, c):
        """Return a b + c."""
        return self.builder.fadd(self.multiply(a, b), c, flags=("contract",))

    def add_to(self, total, a, b):
        """Add a b to a variable."""
        value = self.multiply_add(a, b, self.builder.load(total))
        self.builder.store(value, total)

    def count(self, total, mask):
        """Add to a long integer variable the number of lanes where ``mask`` holds."""
        bits = self.builder.bitcast(mask, ir.IntType(LANES))
        more = self.builder.zext(self.builder.ctpop(bits), _LONG)
        self.builder.store(self.builder.add(self.builder.load(total), more), total)

    def variables(self, values):
        """Return what a loop may change; the compiler keeps it in registers."""
        return [cgutils.alloca_once_value(self.builder, value) for value in values]

    def loop(self, count):
        """Return the context of a loop whose ``index`` runs up to ``count``."""
        return cgutils.for_range(self.builder, count)


@intrinsic
def prefetch(typing, array, place):
    """Ask for the cache line at ``place`` of an array."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        byte = _BYTE.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        where = builder.bitcast(builder.gep(v.args[0], [v.args[1]]), byte)
        builder.call(ask, [where, _INT(0), _INT(3), _INT(1)])  # to read, keep close, data
        return v.done

    return types.void(array, types.int64), generate
