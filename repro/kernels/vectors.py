"""Vectors of float32 for the inner loops of compiled kernels: numba has no word for them.

The compiler turns most loops into vector instructions by itself, but not one whose sums are a tile
of a matrix, and not at the full width of every processor. :class:`Vectors` writes the instructions
of such a loop as it is compiled. Below it stand the products that kernels are made of: of arrays
taken as flat, each followed by the place where its part begins (``_at``), with the stride from row
to row.
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
PANEL = 8  # rows of a system at a time: enough sums to hide an addition's delay; at most LANES

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


@intrinsic
def copy_scaled(typing, source, source_at, scale, count, out, out_at):
    """Write ``count`` values of ``source`` times ``scale`` to ``out``."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        source, source_at, scale, count, out, out_at = v.args
        scale = v.broadcast(scale)
        with v.loop(v.whole(count)) as turn:
            c = v.times(turn.index, LANES)
            v.store(v.multiply(scale, v.load(source, source_at, c)), out, out_at, c)
        return v.done

    n = types.int64
    return types.void(source, n, types.float32, n, out, n), generate


@intrinsic
def add_product(typing, a, a_at, b, b_at, stride, depth, out, out_at):
    """Add A'B to PANEL rows of LANES columns of ``out``; A, B and ``out`` have the same stride."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        a, a_at, b, b_at, stride, depth, out, out_at = v.args
        rows = [v.times(stride, r) for r in range(PANEL)]
        sums = v.variables(v.load(out, out_at, row) for row in rows)
        with v.loop(depth) as turn:
            begin = builder.mul(turn.index, stride)
            right = v.load(b, b_at, begin)
            for r, total in enumerate(sums):
                v.add_to(total, v.broadcast_at(a, a_at, begin, r), right)
        for row, total in zip(rows, sums, strict=True):
            v.store(builder.load(total), out, out_at, row)
        return v.done

    n = types.int64
    return types.void(a, n, b, n, n, n, out, n), generate


@intrinsic
def add_rows(typing, g, g_at, stride, x, x_at, out, width):
    """Add the sum of LANES rows of ``g``, each times its value of ``x``, to ``out``."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        g, g_at, stride, x, x_at, out, width = v.args
        weights = [v.broadcast_at(x, x_at, r) for r in range(LANES)]
        with v.loop(v.whole(width)) as turn:
            c = v.times(turn.index, LANES)
            total = v.load(out, c)
            for r, weight in enumerate(weights):
                row = v.load(g, g_at, v.times(stride, r), c)
                total = v.multiply_add(weight, row, total)
            v.store(total, out, c)
        return v.done

    n = types.int64
    return types.void(g, n, n, x, n, out, n), generate


def _dots(rows: int, columns: int):
    """Return the function that writes the products of so many rows of A and of B, LANES in all."""

    @intrinsic
    def dots(typing, a, a_at, a_stride, b, b_at, b_stride, depth, out, out_at, stride):
        def generate(context, builder, signature, args):
            v = Vectors(context, builder, signature, args)
            a, a_at, a_stride, b, b_at, b_stride, depth, out, out_at, stride = v.args
            left = [v.times(a_stride, r) for r in range(rows)]
            right = [v.times(b_stride, r) for r in range(columns)]
            sums = v.variables([v.zero] * LANES)
            with v.loop(v.whole(depth)) as turn:
                c = v.times(turn.index, LANES)
                x = [v.load(a, a_at, row, c) for row in left]
                y = [v.load(b, b_at, row, c) for row in right]
                for place, total in enumerate(sums):
                    v.add_to(total, x[place // columns], y[place % columns])
            parts, size = [builder.load(total) for total in sums], LANES
            while size > 1:  # two vectors of parts of sums become one of parts half as many
                size //= 2
                low = [lane for lane in range(2 * LANES) if lane // size % 2 == 0]
                high = [lane + size for lane in low]
                parts = [
                    builder.fadd(v.shuffle(*pair, low), v.shuffle(*pair, high))
                    for pair in zip(parts[::2], parts[1::2], strict=True)
                ]
            if columns == 1:
                v.store(parts[0], out, out_at)
            else:
                for r in range(rows):
                    row = v.shuffle(*parts * 2, range(r * columns, (r + 1) * columns))
                    v.store(row, out, out_at, v.times(stride, r))
            return v.done

        n = types.int64
        return types.void(a, n, n, b, n, n, n, out, n, n), generate

    return dots


dot_tile, dot_column = _dots(LANES // 4, 4), _dots(LANES, 1)
