"""Compiled inner loops, and the threads that run them.

One file: numba keeps what it compiled until the file of the compiled function changes, and these
functions are made of one another.

1. Threads: :func:`parallel_map`, :func:`one_blas_thread`.
2. SIMD: :class:`Vectors`, and the products that kernels are made of.
3. Rows of alternating least squares: :class:`Rows`, :func:`solve_rows`.
4. Ranks: :func:`heldout_ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import scipy.sparse as sp
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from scipy.linalg import solve_triangular
from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all that is loaded: once is enough


def one_blas_thread():
    """Return a context in which NumPy's BLAS has one thread.

    Those that it wakes for a large product go on spinning for a while after it.
    """
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def parallel_map(task: Callable, chunks: Iterable) -> list:
    """Return ``task(chunk)`` of every chunk, in order, from ``torch.get_num_threads()`` threads.

    Each result depends on its chunk alone, so the number of threads changes nothing but the time.
    """
    with one_blas_thread():
        return list(_pool(torch.get_num_threads()).map(task, chunks))


def _lanes() -> int:
    try:
        return 16 if binding.get_host_cpu_features().get("avx512f") else 8
    except RuntimeError:  # LLVM does not know every processor
        return 8


LANES = _lanes()
PANEL = 8  # rows of a system at a time: enough sums to hide an addition's delay; at most LANES

_FLOAT, _BYTE, _INT, _LONG = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)


def compiled(function=None, **options):
    """Compile a function that runs without the GIL; what the compiler made is kept on disk."""
    if function is None:
        return partial(compiled, **options)
    return njit(nogil=True, cache=True, **options)(function)


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


_CHUNKS = 64  # of rows: many, so that no thread waits long for the last
_STRIP = 64  # plays of a long row taken at a time: their factors stay in the nearest cache
_AHEAD = 8  # plays whose factors are asked for before their turn
_BATCH_FLOATS = 2**24  # of gathered factors in a batch on a GPU


def _on_processor(device) -> bool:
    return torch.device(device).type == "cpu"


@dataclass
class Rows:
    """A sparse surplus matrix on the device, its rows cut into chunks of like length."""

    columns: int
    indptr: torch.Tensor
    indices: torch.Tensor
    root: torch.Tensor
    chunks: list[torch.Tensor]

    @classmethod
    def of(cls, matrix: sp.csr_matrix, factors: int, device: str = "cpu") -> Rows:
        """Arrange the rows of ``matrix`` (rows x columns) for solving them with K ``factors``."""
        lengths = np.diff(matrix.indptr)
        order = np.argsort(-lengths, kind="stable")
        length = lengths[order].astype(np.float64)
        if _on_processor(device):
            short, long = np.minimum(length, factors), np.maximum(length, factors)
            gather = 50.0 * factors * length  # in operations, roughly
            work = np.cumsum(short**2 * long + short**3 / 3 + gather)
            bounds = np.searchsorted(work, work.max(initial=0) * np.arange(1, _CHUNKS) / _CHUNKS)
        else:
            # Rows of a batch are padded to the longest: cut where that would waste a quarter,
            # and where the dual form begins.
            bounds, start = [], 0
            order = order[: np.count_nonzero(lengths)]  # the others are at their prior means
            while start < len(order):
                ahead = length[start : min(start + _BATCH_FLOATS // factors, len(order))]
                fits = np.arange(1, len(ahead) + 1) * ahead[0] * factors <= _BATCH_FLOATS
                like = (1.25 * ahead + 4 >= ahead[0]) & ((ahead > factors) == (ahead[0] > factors))
                start += max(1, int(np.count_nonzero(fits & like)))
                bounds.append(start)
        return cls(
            matrix.shape[1],
            *(torch.from_numpy(part).to(device) for part in (
                matrix.indptr.astype(np.int64),
                matrix.indices.astype(np.int32, copy=False),
                np.sqrt(matrix.data).astype(np.float32),
            )),
            [torch.from_numpy(chunk).to(device) for chunk in np.split(order, bounds) if len(chunk)],
        )  # fmt: skip


def solve_rows(fixed, rows: Rows, ridge: float, prior=None, start=None, steps=None) -> torch.Tensor:
    """Solve all rows at once, in float32 and on all cores or the GPU.

    Parameters
    ----------
    fixed : tensor of float32, columns x K
    rows : Rows
    ridge : float
    prior : tensor, rows x K, optional
    start : tensor, rows x K
        The rows as they are, from which the approximate solver sets out.
    steps : int, optional
        Take so many steps of conjugate gradients from ``start`` in place of solving exactly.

    Returns
    -------
    tensor of float32, rows x K
    """
    if len(fixed) != rows.columns:
        raise ValueError(f"{len(fixed)} fixed factors for {rows.columns} columns")
    if not _on_processor(fixed.device):
        if steps is not None:
            raise ValueError("the approximate solver runs on the CPU: leave steps out on a GPU")
        return _solve_batches(fixed, rows, ridge, prior)
    with one_blas_thread():
        return torch.from_numpy(_solve_chunks(fixed, rows, ridge, prior, start, steps))


def _solve_chunks(fixed, rows: Rows, ridge, prior, start, steps) -> np.ndarray:
    y, plays = fixed.numpy(), (rows.indptr.numpy(), rows.indices.numpy(), rows.root.numpy())
    k = y.shape[1]
    blocks = [slice(begin, begin + 4096) for begin in range(0, len(y), 4096)]
    grams = parallel_map(lambda block: _gram(y[block].astype(np.float64)), blocks)
    lower = np.linalg.cholesky(sum(grams, ridge * np.eye(k)))
    inverse = solve_triangular(lower, np.eye(k), lower=True)
    white = aligned(len(y), k + -k % LANES)

    def whiten(block):
        white[block, :k] = y[block] @ inverse.T

    parallel_map(whiten, blocks)
    x = np.zeros((len(plays[0]) - 1, k), np.float32)

    def solve_chunk(chunk):
        chunk = chunk.numpy()
        longest = int((plays[0][chunk + 1] - plays[0][chunk]).max())
        z = aligned(len(chunk), white.shape[1])
        if prior is not None:
            z[:, :k] = ridge * prior.numpy()[chunk] @ inverse.T
        if steps is None:
            _solve_rows(chunk, *plays, white, z, k, *_room(longest, k))
        else:
            mean = z.copy()
            z[:, :k] = start.numpy()[chunk] @ lower.astype(np.float32)
            width, most = white.shape[1], longest + LANES
            room = [aligned(1, n)[0] for n in (most * width, most, most)] + [aligned(4, width)]
            _step_rows(chunk, *plays, white, z, mean, steps, *room)
        x[chunk] = z[:, :k] @ inverse

    parallel_map(solve_chunk, rows.chunks)
    return x


def _gram(y):
    return y.T @ y


def _room(longest: int, k: int) -> list[np.ndarray]:
    """Return space for the gathered factors, a system, its multiples and its solution."""
    side = min(longest, k)
    gathered = max((side + LANES) * (k + -k % LANES), _STRIP * _stride(k))
    system = (side + LANES) * _stride(k)
    return [aligned(1, n)[0] for n in (gathered, system, system, side + 3 * LANES)]


@compiled
def _stride(side):
    """Return a row's length in a system: whole vectors, an odd number for the cache's sake."""
    vectors = (side // PANEL * PANEL + 2 * LANES - 1) // LANES
    return (vectors + 1 - vectors % 2) * LANES


@compiled
def _solve_rows(rows, indptr, indices, root, white, z, k, g, system, multiples, x):
    """Replace the prior means in ``z``, one for each of the listed rows, by the solutions."""
    width = white.shape[1]
    for turn in range(len(rows)):
        if turn + 1 < len(rows):  # the next row's factors come in while this one is solved
            first = indptr[rows[turn + 1]]
            for play in range(first, min(first + _STRIP, indptr[rows[turn + 1] + 1])):
                _prefetch_row(white, indices[play])
        plays = slice(indptr[rows[turn]], indptr[rows[turn] + 1])
        length = plays.stop - plays.start
        side = min(length, k)
        stride = _stride(side)
        system[: (side + PANEL) * stride] = 0
        if length <= k:
            _short_system(indices[plays], root[plays], white, z[turn], g, system, stride)
            _eliminate(system, multiples, side, stride, x)
            for play in range(0, side, LANES):
                add_rows(g, play * width, width, x, play, z[turn], width)
        else:
            _long_system(indices[plays], root[plays], white, z[turn], g, system, k, stride)
            _eliminate(system, multiples, side, stride, x)
            z[turn, :k] = x[:k]


@compiled
def _gather(indices, root, white, g, stride):
    """Write the scaled factors of some plays into the rows of ``g``."""
    for play in range(len(indices)):
        if play + _AHEAD < len(indices):
            _prefetch_row(white, indices[play + _AHEAD])
        place = indices[play] * white.shape[1]
        copy_scaled(white, place, root[play], white.shape[1], g, play * stride)


@compiled
def _prefetch_row(white, row):
    for c in range(0, white.shape[1], 16):
        prefetch(white, row * white.shape[1] + c)


@compiled
def _short_system(indices, root, white, mean, g, system, stride):
    """Write I + G G' and, as one more column, its right-hand side into ``system``."""
    n, width = len(indices), white.shape[1]
    _gather(indices, root, white, g, width)
    copy_scaled(mean, 0, np.float32(-1), width, g, n * width)
    for i in range(0, n, LANES // 4):
        for j in range(i // 4 * 4, n + 1, 4):
            at = i * stride + j
            dot_tile(g, i * width, width, g, j * width, width, width, system, at, stride)
    for play in range(n):
        system[play * stride + play] += 1
        system[play * stride + n] += root[play] + 1 / root[play]


@compiled
def _long_system(indices, root, white, mean, g, system, k, stride):
    """Write I + G'G and, as one more column, its right-hand side into ``system``."""
    for i in range(k):
        system[i * stride + i] = 1
        system[i * stride + k] = mean[i]
    for begin in range(0, len(indices), _STRIP):
        strip = slice(begin, min(begin + _STRIP, len(indices)))
        _gather(indices[strip], root[strip], white, g, stride)
        for play in range(strip.start, strip.stop):
            g[(play - begin) * stride + k] = root[play] + 1 / root[play]
        for i in range(0, k, PANEL):
            for j in range(i, k + 1, LANES):
                at = i * stride + j
                add_product(g, i, g, j, stride, strip.stop - strip.start, system, at)


@compiled
def _eliminate(system, multiples, n, stride, x):
    """Solve the ``n`` equations whose upper triangle and right-hand side are in ``system``.

    A Cholesky factorisation without roots, M = U' D^-1 U, a panel of rows at a time; ``multiples``
    takes -D^-1 U, but -D^-1 on its diagonal. The solution goes to ``x``, followed by zeros.
    """
    end = -(-n // LANES) * LANES
    for i in range(0, n, PANEL):
        own = i * stride + i
        for j in range(i, n + 1, LANES):
            at = i * stride + j
            add_product(multiples, i, system, j, stride, i, system, at)
            if j == i:
                _finish_first(system, multiples, stride, own, at)
            else:
                _finish_next(system, multiples, stride, own, at)
        for row in range(i, i + PANEL):
            for c in range(j + LANES, end):  # read below, times zero, whatever was left there
                multiples[row * stride + c] = 0
    x[end : end + LANES] = 0
    for i in range(end - LANES, -1, -LANES):
        after = i * stride + i + LANES
        dot_column(multiples, after, stride, x, i + LANES, 0, end - LANES - i, x, i, 0)
        _substitute(multiples, i * stride + i, i * stride + n, stride, n - i, x, i)


def _finish(first: bool):
    """Return the function that eliminates within LANES columns of a panel.

    The ``first`` have the panel's own triangle, at ``own``, and make its multiples.
    """

    @intrinsic
    def finish(typing, system, multiples, stride, own, at):
        def generate(context, builder, signature, args):
            v = Vectors(context, builder, signature, args)
            system, multiples, stride, own, at = v.args
            rows = [v.times(stride, r) for r in range(PANEL)]
            x = [v.load(system, at, row) for row in rows]
            for r, row in enumerate(rows):
                v.store(x[r], system, at, row)
                if first:
                    inverse = builder.fdiv(v.number(-1.0), v.lane(x[r], r))
                    factors = v.multiply(v.broadcast(inverse), x[r])
                    v.store(factors, multiples, at, row)
                    v.store(inverse, multiples, at, row, r)
                else:
                    v.store(
                        v.multiply(v.broadcast_at(multiples, own, row, r), x[r]), multiples, at, row
                    )
                for below in range(r + 1, PANEL):
                    if first:
                        factor = v.broadcast(v.lane(factors, below))
                    else:
                        factor = v.broadcast_at(multiples, own, row, below)
                    x[below] = v.multiply_add(factor, x[r], x[below])
            return v.done

        n = types.int64
        return types.void(system, multiples, n, n, n), generate

    return finish


_finish_first, _finish_next = _finish(True), _finish(False)


@intrinsic
def _substitute(typing, multiples, at, right, stride, count, x, x_at):
    """Take LANES unknowns of ``x`` from the last to the first; those after ``count`` are zero."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        multiples, at, right, stride, count, x, x_at = v.args
        rows = [v.times(stride, r) for r in range(LANES)]
        found = [
            builder.fsub(v.value(x, x_at, r), v.value(multiples, right, row))
            for r, row in enumerate(rows)
        ]
        for r in reversed(range(LANES)):
            there = builder.icmp_signed("<", v.long(r), count)
            found[r] = builder.select(there, found[r], v.number(0.0))
            v.store(found[r], x, x_at, r)
            for above in range(r):
                factor = v.value(multiples, at, rows[above], r)
                found[above] = v.multiply_add(factor, found[r], found[above])
        return v.done

    n = types.int64
    return types.void(multiples, n, n, n, n, x, n), generate


@compiled
def _step_rows(rows, indptr, indices, root, white, z, mean, steps, g, target, none, room):
    """Take ``steps`` of conjugate gradients from ``z``, without any row's Gram matrix."""
    width = white.shape[1]
    residual, direction, product, weights = room[0], room[1], room[2], room[3]
    for turn in range(len(rows)):
        plays = slice(indptr[rows[turn]], indptr[rows[turn] + 1])
        n = plays.stop - plays.start
        _gather(indices[plays], root[plays], white, g, width)
        g[n * width : (n + LANES) * width] = 0
        target[n : n + LANES] = 0
        for play in range(n):
            target[play] = root[plays.start + play] + 1 / root[plays.start + play]
        x = z[turn]
        residual[:] = mean[turn] - x
        _add_misses(g, n, width, x, target, weights, residual)
        direction[:] = residual
        norm = _inner(residual, residual)
        enough = np.float32(1e-13) * norm  # no float32 residual gets much smaller
        for _ in range(steps):
            if norm <= enough:
                break
            product[:] = -direction  # and, in a moment, minus the system's product with it
            _add_misses(g, n, width, direction, none, weights, product)
            step = -norm / _inner(direction, product)
            for c in range(width):
                x[c] += step * direction[c]
                residual[c] += step * product[c]
            before, norm = norm, _inner(residual, residual)
            for c in range(width):
                direction[c] = residual[c] + norm / before * direction[c]


@compiled
def _add_misses(g, n, width, x, target, weights, out):
    """Add G'(target - G x) to ``out``, for ``n`` rows of G and zeros after them."""
    for play in range(0, n, LANES):
        dot_column(g, play * width, width, x, 0, 0, width, weights, 0, 0)
        for row in range(LANES):
            weights[row] = target[play + row] - weights[row]
        add_rows(g, play * width, width, weights, 0, out, width)


@compiled(fastmath={"reassoc", "contract"})
def _inner(a, b):
    total = np.float32(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


def _solve_batches(fixed, rows: Rows, ridge, prior) -> torch.Tensor:
    """Solve by batched matrix products, for a GPU; the algebra of :func:`_solve_rows`."""
    k = fixed.shape[1]
    eye = torch.eye(k, dtype=torch.float64, device=fixed.device)
    gram = ridge * eye
    for block in fixed.split(2**16):
        gram += block.double().T @ block.double()
    inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), eye, upper=False)
    white = _product(fixed, inverse.T)
    if prior is None:
        z = torch.zeros(len(rows.indptr) - 1, k, device=fixed.device)
    else:
        z = _product(prior, ridge * inverse.T)
    for batch in rows.chunks:
        begin = rows.indptr[batch]
        length = rows.indptr[batch + 1] - begin
        place = torch.arange(int(length.max()), device=z.device)
        mask = place < length[:, None]
        entry = torch.where(mask, begin[:, None] + place, begin[:, None])
        root = torch.where(mask, rows.root[entry], 0.0)
        g = white[rows.indices[entry]] * root[:, :, None]
        right = torch.where(mask, root + 1.0 / root, 0.0)[:, :, None]
        mean = z[batch, :, None]
        if len(place) <= k:
            found = mean + g.mT @ _solve_spd(g @ g.mT, right - g @ mean)
        else:
            found = _solve_spd(g.mT @ g, mean + g.mT @ right)
        z[batch] = found[:, :, 0]
    return _product(z, inverse)


def _product(rows, matrix):
    """Multiply in float64, a block at a time."""
    return torch.cat([(block.double() @ matrix).float() for block in rows.split(2**16)])


def _solve_spd(gram, right):
    gram.diagonal(dim1=1, dim2=2).add_(1.0)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


_USERS, _ITEMS = 256, 1024  # of a tile of scores, which stays in cache


def heldout_ranks(theta, beta, held: sp.csr_matrix, out: sp.csr_matrix) -> np.ndarray:
    """Count, for every pair of ``held``, the items that its user has above it.

    Blocked float32 products score all items. Where one is too close to a held-out item's to tell,
    both are scored again in float64, so that the order depends on no machine.

    Parameters
    ----------
    theta, beta : arrays of float32, users x K and items x K
    held, out : csr_matrix, users x items
        Pairs to rank, and others that stay off the lists; none may be in both.

    Returns
    -------
    array of int64, one entry for each stored pair of ``held``, in its order.

    Raises
    ------
    ValueError
        When a score may not be finite.
    """
    length, longest = (np.sqrt(np.einsum("ij,ij->i", x, x, dtype=float)) for x in (theta, beta))
    if not length.max(initial=0) * longest.max(initial=0) < np.finfo(np.float32).max:
        raise ValueError("scores must be finite")
    # By falling length: no product of a tile is larger than with the tile's first item.
    order = np.argsort(-longest, kind="stable").astype(np.int32)
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=np.int32)
    columns, longest = np.ascontiguousarray(beta[order].T), longest[order]
    ranks = np.zeros(held.nnz, np.int64)
    pairs = theta, beta, held.indptr, held.indices, np.empty(held.nnz), ranks
    users = np.flatnonzero(np.diff(held.indptr))

    width = min(_ITEMS, len(beta) + -len(beta) % 64)

    def count(block):
        listed, room = theta[block], aligned(len(block), width)
        taken = np.empty((out.indptr[block + 1] - out.indptr[block]).sum(), np.int32)
        ends = np.empty(len(block), np.int64)
        _start(block, out.indptr, out.indices, place, taken, ends, *pairs)
        for first in range(0, len(beta), _ITEMS):
            n = min(_ITEMS, len(beta) - first)
            np.matmul(listed, columns[:, first : first + n], out=room[:, :n])
            room[:, n:] = -np.inf
            bound = length[block] * longest[first]
            _add_tile(room, first, n, block, bound, order, place, taken, ends, *pairs)

    parallel_map(count, (users[i : i + _USERS] for i in range(0, len(users), _USERS)))
    return ranks


@compiled
def _start(
    users, out_indptr, out_indices, place, taken, ends, theta, beta, indptr, indices, own, _
):
    """Score the users' held-out items; list where the tiles have the excluded ones."""
    end = 0
    for row, user in enumerate(users):
        for entry in range(indptr[user], indptr[user + 1]):
            own[entry] = _exact_score(theta[user], beta[indices[entry]])
        begin, end = end, end + out_indptr[user + 1] - out_indptr[user]
        for spot in range(begin, end):
            taken[spot] = place[out_indices[out_indptr[user] + spot - begin]]
        ends[row] = end


@compiled
def _add_tile(
    scores, first, n, users, bound, order, place, taken, ends,
    theta, beta, indptr, indices, own, ranks,
):  # fmt: skip
    """Add to the rank of the users' held-out items the ones of this tile listed above them."""
    end = 0
    for row, user in enumerate(users):
        score = scores[row]
        begin, end = end, ends[row]
        for spot in range(begin, end):
            if first <= taken[spot] < first + n:
                score[taken[spot] - first] = -np.inf
        # A float32 sum of K products is this near, in whatever order it is summed.
        margin = (theta.shape[1] + 4) * 2.0**-24 * bound[row] + 1e-37
        for entry in range(indptr[user], indptr[user + 1]):
            if own[entry] > bound[row] + 2 * margin:
                continue  # nothing here is as high
            low, high = np.float32(own[entry] - margin), np.float32(own[entry] + margin)
            above, near = _count(score, 0, len(score), low, high)
            ranks[entry] += above
            if near - above == (first <= place[indices[entry]] < first + n):
                continue  # but for itself
            for part in range(0, n, 64):
                above, near = _count(score, part, 64, low, high)
                if near == above:
                    continue
                for c in range(part, min(part + 64, n)):
                    item = order[first + c]
                    if low <= score[c] <= high and item != indices[entry]:
                        exact = _exact_score(theta[user], beta[item])
                        equal_first = exact == own[entry] and item < indices[entry]
                        ranks[entry] += exact > own[entry] or equal_first


@compiled
def _count(score, at, n, low, high):
    both = _count_both(score, at, n, low, high)
    return both >> 32, both & 0xFFFFFFFF


@intrinsic
def _count_both(typing, score, at, n, low, high):
    """Count the scores above ``high`` and, in the lower half of the result, from ``low`` on."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        score, at, n, low, high = v.args
        low, high = v.broadcast(low), v.broadcast(high)
        above, near = v.variables([v.none, v.none])
        with v.loop(v.whole(n)) as turn:
            value = v.load(score, at, v.times(turn.index, LANES))
            v.count(above, builder.fcmp_ordered(">", value, high))
            v.count(near, builder.fcmp_ordered(">=", value, low))
        return builder.or_(builder.shl(builder.load(above), v.long(32)), builder.load(near))

    real = types.float32
    return types.int64(score, types.int64, types.int64, real, real), generate


@compiled
def _exact_score(theta, beta):
    """Return a product in float64 whose order of summation is the same everywhere."""
    a = b = c = d = 0.0
    k = len(theta)
    for i in range(0, k - 3, 4):
        a += np.float64(theta[i]) * np.float64(beta[i])
        b += np.float64(theta[i + 1]) * np.float64(beta[i + 1])
        c += np.float64(theta[i + 2]) * np.float64(beta[i + 2])
        d += np.float64(theta[i + 3]) * np.float64(beta[i + 3])
    for i in range(k - k % 4, k):
        a += np.float64(theta[i]) * np.float64(beta[i])
    return (a + b) + (c + d)
