"""Compiled inner loops, and the threads that run them.

One file: numba keeps what it compiled until the file of the compiled function changes, and these
functions are made of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial, wraps

import numpy as np
import scipy.sparse as sp
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from scipy.linalg import solve_triangular
from threadpoolctl import ThreadpoolController

# ---- Threads: kernels and NumPy release the GIL. For one caller at a time, and not after a fork.

_libraries = cache(ThreadpoolController)  # looks through all that is loaded: once is enough
_BLOCK = 512  # rows of a matrix that are multiplied at a time
_pool = cache(ThreadPoolExecutor)


def one_blas_thread():
    """Return a context in which NumPy's BLAS has one thread: those it wakes go on spinning."""
    return _libraries().limit(limits=1, user_api="blas")


def parallel_map(task: Callable, chunks: Iterable) -> list:
    """Return ``task(chunk)`` of every chunk, in order, from ``torch.get_num_threads()`` threads.

    Each result depends on its chunk alone, so the number of threads changes nothing but the time.
    """
    with one_blas_thread():
        return list(_pool(torch.get_num_threads()).map(task, chunks))


def multiply_rows(rows, matrix, out=None) -> np.ndarray:
    """Return ``rows @ matrix``, a block of rows at a time, as float32 or in ``out``."""
    out = np.empty((len(rows), matrix.shape[1]), np.float32) if out is None else out

    def multiply(begin):
        block = slice(begin, begin + _BLOCK)
        out[block] = rows[block] @ matrix

    parallel_map(multiply, range(0, len(rows), _BLOCK))
    return out


def cross_product(a, b, dtype=np.float64) -> np.ndarray:
    """Return ``a.T @ b``, the sum in float64 of products of blocks of rows in ``dtype``."""

    def share(first):
        total = np.zeros((a.shape[1], b.shape[1]))
        for begin in range(first, len(a), 8 * _BLOCK):
            left = a[begin : begin + _BLOCK].astype(dtype, copy=False)
            right = b[begin : begin + _BLOCK].astype(dtype, copy=False) if b is not a else left
            total += left.T @ right
        return total

    return sum(parallel_map(share, range(0, 8 * _BLOCK, _BLOCK)))


# Compiled functions run without the GIL; what the compiler made of them is kept on disk.
compiled = partial(njit, nogil=True, cache=True)

# ---- SIMD. The compiler turns most loops into vector instructions by itself, but not one whose
# sums are a tile of a matrix, and not at the full width of every processor.

try:  # float32 values in a vector
    LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
except RuntimeError:  # LLVM does not know every processor
    LANES = 8
PANEL = 8  # rows of a system at a time: enough sums to hide an addition's delay; at most LANES

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _MASK = ir.VectorType(_FLOAT, LANES), ir.IntType(LANES)  # a bit for each value


def aligned(rows: int, columns: int) -> np.ndarray:
    """Return zeros of float32, rows x columns, that begin at a cache line."""
    space = np.zeros(rows * columns + 16, np.float32)
    skip = -space.ctypes.data % 64 // 4
    return space[skip : skip + rows * columns].reshape(rows, columns)


@dataclass
class Vectors:
    """Writes instructions on ``LANES`` float32 values at a time, as a kernel is compiled.

    A place in an array is a sum of numbers and values, given one after the other.
    """

    builder: ir.IRBuilder

    def _at(self, pointer, place, kind):
        for step in place:
            step = _LONG(step) if isinstance(step, int) else step
            pointer = self.builder.gep(pointer, [step])
        return self.builder.bitcast(pointer, kind.as_pointer())

    def load(self, pointer, *place, kind=_VECTOR):
        return self.builder.load(self._at(pointer, place, kind), align=4)

    def store(self, value, pointer, *place):
        """Write a vector, or a single value."""
        self.builder.store(value, self._at(pointer, place, value.type), align=4)

    def shuffle(self, a, b, lanes):
        """Return the numbered lanes of ``a`` followed by ``b``."""
        lanes = ir.VectorType(_INT, len(lanes))(list(lanes))
        return self.builder.shuffle_vector(a, b, lanes)

    def broadcast(self, value):
        first = self.builder.insert_element(_VECTOR(ir.Undefined), value, _INT(0))
        return self.shuffle(first, first, [0] * LANES)

    def broadcast_at(self, pointer, *place):
        return self.broadcast(self.load(pointer, *place, kind=_FLOAT))

    def multiply_add(self, a, b, c):
        """Return a b + c, in one instruction where there is one."""
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

    def add_to(self, total, a, b):
        """Add a b to a variable, which the compiler keeps in a register."""
        self.builder.store(self.multiply_add(a, b, self.builder.load(total)), total)

    def times(self, a, number: int):
        return self.builder.mul(a, _LONG(number))

    def loop(self, count, step=LANES):
        """Return the context of a loop over every ``step``-th place up to ``count``."""
        return cgutils.for_range_slice(self.builder, _LONG(0), count, _LONG(step))


def simd(write, returns=types.void):
    """Make a function for kernels of ``write(v, *args)``, which writes its instructions.

    Arrays are taken as flat, each followed by the place where its part begins (``_at``).
    """

    @intrinsic
    @wraps(write)
    def typed(typing, *kinds):
        kinds = [types.int64 if isinstance(kind, types.Integer) else kind for kind in kinds]

        def generate(context, builder, _, args):
            args = list(args)
            for place, kind in enumerate(kinds):
                if isinstance(kind, types.Array):  # its first value's pointer
                    args[place] = context.make_array(kind)(context, builder, args[place]).data
            return write(Vectors(builder), *args) or context.get_dummy_value()

        return returns(*kinds), generate

    return typed


@simd
def copy_scaled(v, source, source_at, scale, count, out, out_at):
    """Write ``count`` values of ``source`` times ``scale`` to ``out``."""
    scale = v.broadcast(scale)
    with v.loop(count) as (c, _):
        v.store(v.builder.fmul(scale, v.load(source, source_at, c)), out, out_at, c)


@simd
def add_product(v, a, a_at, b, b_at, stride, depth, out, out_at):
    """Add A'B to PANEL rows of LANES columns of ``out``; all three have the same stride."""
    rows = [v.times(stride, r) for r in range(PANEL)]
    sums = [cgutils.alloca_once_value(v.builder, v.load(out, out_at, row)) for row in rows]
    with v.loop(depth, 1) as (turn, _):
        begin = v.builder.mul(turn, stride)
        right = v.load(b, b_at, begin)
        for r, total in enumerate(sums):
            v.add_to(total, v.broadcast_at(a, a_at, begin, r), right)
    for row, total in zip(rows, sums, strict=True):
        v.store(v.builder.load(total), out, out_at, row)


@simd
def add_rows(v, g, g_at, stride, x, x_at, out, width):
    """Add the sum of LANES rows of ``g``, each times its value of ``x``, to ``out``."""
    weights = [v.broadcast_at(x, x_at, r) for r in range(LANES)]
    with v.loop(width) as (c, _):
        total = v.load(out, c)
        for r, weight in enumerate(weights):
            total = v.multiply_add(weight, v.load(g, g_at, v.times(stride, r), c), total)
        v.store(total, out, c)


def _dots(rows: int, columns: int):
    """Return the function that writes the products of so many rows of A and of B, LANES in all."""

    @simd
    def dots(v, a, a_at, a_stride, b, b_at, b_stride, depth, out, out_at, stride):
        left = [v.times(a_stride, r) for r in range(rows)]
        right = [v.times(b_stride, r) for r in range(columns)]
        sums = [cgutils.alloca_once_value(v.builder, _VECTOR(None)) for _ in range(LANES)]
        with v.loop(depth) as (c, _):
            x = [v.load(a, a_at, row, c) for row in left]
            y = [v.load(b, b_at, row, c) for row in right]
            for place, total in enumerate(sums):
                v.add_to(total, x[place // columns], y[place % columns])
        parts, size = [v.builder.load(total) for total in sums], LANES
        while size > 1:  # two vectors of parts of sums become one of parts half as many
            size //= 2
            low = [lane for lane in range(2 * LANES) if lane // size % 2 == 0]
            high = [lane + size for lane in low]
            parts = [
                v.builder.fadd(v.shuffle(*pair, low), v.shuffle(*pair, high))
                for pair in zip(parts[::2], parts[1::2], strict=True)
            ]
        for r in range(rows):
            row = v.shuffle(*parts * 2, range(r * columns, (r + 1) * columns))
            v.store(row, out, out_at, v.times(stride, r))

    return dots


dot_tile, dot_column = _dots(LANES // 4, 4), _dots(LANES, 1)


# ---- Half a sweep of alternating least squares: all rows of one factor matrix, the other fixed.
#
# With Y the fixed factors, c = 1 + s the confidences of a row's plays and n its prior mean, a row
# minimises sum_i c_i (p_i - y_i.x)^2 + ridge ||x - n||^2 over all columns i (eqs. 1 and 2), that is
#
#     (Y'Y + sum s_i y_i y_i' + ridge I) x = sum c_i y_i + ridge n,   sums over the row's plays.
#
# Y is first whitened by the Cholesky factor of what all rows share, A = Y'Y + ridge I = L L': with
# v_i = L^-1 y_i and z = L' x a row is
#
#     (I + sum s_i v_i v_i') z = sum c_i v_i + ridge L^-1 n,
#
# whose eigenvalues lie between 1 and the highest confidence, so that float32 solves it safely; only
# the way back, x = L'^-1 z, can lose digits, where A itself is ill-conditioned. With G the rows
# sqrt(s_i) v_i', up to K plays are solved through I + G G' (Woodbury), more through I + G'G.

_CHUNKS = 64  # of rows: many, so that no thread waits long for the last
_STRIP = 64  # plays of a long row taken at a time: their factors stay in the nearest cache
_BATCH_FLOATS = 2**24  # of gathered factors in a batch on a GPU


def _on_processor(device) -> bool:
    return torch.device(device).type == "cpu"


@dataclass
class Rows:
    """A sparse surplus matrix on the device, its rows cut into chunks of like length."""

    columns: int
    indptr: torch.Tensor
    indices: torch.Tensor
    root: torch.Tensor  # of the surplus
    chunks: list[torch.Tensor]

    @classmethod
    def of(cls, matrix: sp.csr_matrix, factors: int, device: str = "cpu") -> Rows:
        """Arrange the rows of ``matrix`` (rows x columns) for solving them with K ``factors``."""
        lengths = np.diff(matrix.indptr)
        order = np.argsort(-lengths, kind="stable")
        if _on_processor(device):
            length = lengths[order]
            work = np.cumsum(length * (np.minimum(length, factors) + 50.0))
            bounds = np.searchsorted(work, work.max(initial=0) / _CHUNKS * np.arange(1, _CHUNKS))
        else:
            # Batches are padded to their longest row: cut where that would waste a quarter, and
            # where the dual form begins. Rows without plays are at their prior means.
            order = order[: np.count_nonzero(lengths)]
            bounds, falling = [0], -lengths[order]
            while bounds[-1] < len(order):
                longest = -int(falling[bounds[-1]])
                least = max((longest - 4) / 1.25, factors + 1 if longest > factors else 0)
                fits = bounds[-1] + max(1, _BATCH_FLOATS // (longest * factors))
                bounds.append(min(fits, int(np.searchsorted(falling, -least, side="right"))))
        chunks = [chunk for chunk in np.split(order, bounds) if len(chunk)]
        indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
        arrays = indptr, indices, np.sqrt(matrix.data).astype(np.float32)
        arrays, chunks = ([torch.from_numpy(x).to(device) for x in xs] for xs in (arrays, chunks))
        return cls(matrix.shape[1], *arrays, chunks)


def solve_rows(fixed, rows: Rows, ridge: float, prior=None) -> torch.Tensor:
    """Solve all rows, eq. (1) or with a prior eq. (2), on all cores or the GPU.

    From ``fixed`` (columns x K) and the means ``prior`` (rows x K, zero when absent) to rows x K,
    all of them tensors of float32.
    """
    if len(fixed) != rows.columns:
        raise ValueError(f"{len(fixed)} fixed factors for {rows.columns} columns")
    solve = _solve_chunks if _on_processor(fixed.device) else _solve_batches
    with one_blas_thread():
        return solve(fixed, rows, ridge, prior)


def _solve_chunks(fixed, rows: Rows, ridge, prior) -> torch.Tensor:
    y, plays = fixed.numpy(), tuple(x.numpy() for x in (rows.indptr, rows.indices, rows.root))
    k = y.shape[1]
    root = np.linalg.cholesky(cross_product(y, y) + ridge * np.eye(k))
    inverse = solve_triangular(root, np.eye(k), lower=True)
    white = aligned(len(y), k + -k % LANES)
    multiply_rows(y, inverse.T, white[:, :k])
    x = np.zeros((len(plays[0]) - 1, k), np.float32)

    def solve_chunk(chunk):
        chunk = chunk.numpy()
        z = aligned(len(chunk), white.shape[1])
        if prior is not None:
            z[:, :k] = ridge * prior.numpy()[chunk] @ inverse.T
        room = aligned(4, (max(k, _STRIP) + LANES) * _stride(k))
        _solve_rows(chunk, plays, white, z, k, tuple(room))
        x[chunk] = z[:, :k] @ inverse

    parallel_map(solve_chunk, rows.chunks)
    return torch.from_numpy(x)


@compiled
def _stride(side):
    """Return a row's length in a system: whole vectors, an odd number for the cache's sake."""
    vectors = (side // PANEL * PANEL + 2 * LANES - 1) // LANES
    return (vectors + 1 - vectors % 2) * LANES


@compiled
def _solve_rows(rows, plays, white, z, k, room):
    """Replace the prior means in ``z``, one for each of the listed rows, by the solutions."""
    indptr, indices, root = plays
    g, system, multiples, x = room
    width = white.shape[1]
    for turn in range(len(rows)):
        part = slice(indptr[rows[turn]], indptr[rows[turn] + 1])
        length, mean = part.stop - part.start, z[turn]
        side = min(length, k)
        stride = _stride(side)
        system[: (side + PANEL) * stride] = 0
        if length <= k:  # I + G G' and, as one more column, its right-hand side
            _gather(indices[part], root[part], white, g, width)
            copy_scaled(mean, 0, np.float32(-1), width, g, side * width)
            for i in range(0, side, LANES // 4):
                for j in range(i // 4 * 4, side + 1, 4):
                    at = i * stride + j
                    dot_tile(g, i * width, width, g, j * width, width, width, system, at, stride)
            for i, scale in enumerate(root[part]):
                system[i * stride + i] += 1
                system[i * stride + side] += scale + 1 / scale
            _eliminate(system, multiples, side, stride, x)
            for play in range(0, side, LANES):
                add_rows(g, play * width, width, x, play, mean, width)
            continue
        for i in range(k):  # I + G'G and its right-hand side
            system[i * stride + i] = 1
            system[i * stride + k] = mean[i]
        for begin in range(part.start, part.stop, _STRIP):
            strip = slice(begin, min(begin + _STRIP, part.stop))
            _gather(indices[strip], root[strip], white, g, stride)
            for i, scale in enumerate(root[strip]):
                g[i * stride + k] = scale + 1 / scale
            for i in range(0, k, PANEL):
                for j in range(i, k + 1, LANES):
                    depth = strip.stop - strip.start
                    add_product(g, i, g, j, stride, depth, system, i * stride + j)
        _eliminate(system, multiples, side, stride, x)
        mean[:k] = x[:k]


@compiled
def _gather(indices, root, white, g, stride):
    """Write the scaled factors of some plays into the rows of ``g``."""
    width = white.shape[1]
    for play in range(len(indices)):
        copy_scaled(white, indices[play] * width, root[play], width, g, play * stride)


@compiled(fastmath={"contract"})
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
        for row in range(i, i + PANEL):  # read below, times zero, whatever was left there
            multiples[row * stride + j + LANES : row * stride + end] = 0
    x[end : end + LANES] = 0
    for i in range(end - LANES, -1, -LANES):
        after = i * stride + i + LANES
        dot_column(multiples, after, stride, x, i + LANES, 0, end - LANES - i, x, i, 1)
        count = min(LANES, n - i)
        x[i + count : i + LANES] = 0
        for r in range(count):
            x[i + r] -= multiples[(i + r) * stride + n]
        for r in range(count - 1, 0, -1):
            for above in range(r):
                x[i + above] += multiples[(i + above) * stride + i + r] * x[i + r]


def _finish(first: bool):
    """Return the function that eliminates within LANES columns of a panel.

    The ``first`` have the panel's own triangle, at ``own``, and make its multiples.
    """

    @simd
    def finish(v, system, multiples, stride, own, at):
        rows = [v.times(stride, r) for r in range(PANEL)]
        x = [v.load(system, at, row) for row in rows]
        for r, row in enumerate(rows):
            v.store(x[r], system, at, row)
            if first:
                inverse = v.builder.fdiv(_FLOAT(-1.0), v.builder.extract_element(x[r], _INT(r)))
                factors = v.builder.fmul(v.broadcast(inverse), x[r])
                v.store(factors, multiples, at, row)
                v.store(inverse, multiples, at, row, r)
            else:
                scale = v.broadcast_at(multiples, own, row, r)
                v.store(v.builder.fmul(scale, x[r]), multiples, at, row)
            for below in range(r + 1, PANEL):
                if first:
                    factor = v.shuffle(factors, factors, [below] * LANES)
                else:
                    factor = v.broadcast_at(multiples, own, row, below)
                x[below] = v.multiply_add(factor, x[r], x[below])

    return finish


_finish_first, _finish_next = _finish(True), _finish(False)


def _solve_batches(fixed, rows: Rows, ridge, prior) -> torch.Tensor:
    """Solve by batched matrix products, for a GPU; the algebra of :func:`_solve_rows`."""
    k = fixed.shape[1]
    eye = torch.eye(k, dtype=torch.float64, device=fixed.device)
    squares = (block.double().T @ block.double() for block in fixed.split(2**16))
    gram = sum(squares, ridge * eye)
    inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), eye, upper=False)
    white = _product(fixed, inverse.T)
    z = torch.zeros(len(rows.indptr) - 1, k, device=fixed.device)
    if prior is not None:
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
        short = len(place) <= k
        gram = g @ g.mT if short else g.mT @ g
        gram.diagonal(dim1=1, dim2=2).add_(1.0)
        right = right - g @ mean if short else mean + g.mT @ right
        found = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
        z[batch] = (mean + g.mT @ found if short else found)[:, :, 0]
    return _product(z, inverse)


def _product(rows, matrix):
    """Multiply in float64, a block at a time."""
    return torch.cat([(block.double() @ matrix).float() for block in rows.split(2**16)])


# ---- Ranks of held-out items, by counting, without sorting.

_USERS, _ITEMS = 256, 1024  # of a tile of scores, which stays in cache


def heldout_ranks(theta, beta, held: sp.csr_matrix, out: sp.csr_matrix) -> np.ndarray:
    """Count, for every stored pair of ``held``, the items that its user has above it (int64).

    Blocked float32 products score all items. Where one is too close to a held-out item's to tell,
    both are scored again in float64, so that the order depends on no machine. ``theta`` (users x K)
    and ``beta`` (items x K) are C-contiguous in float32. Pairs of ``out`` (both are csr_matrix,
    users x items) stay off the lists; none may be in both. Scores not finite are a ValueError.
    """
    length, longest = (np.sqrt(np.einsum("ij,ij->i", x, x, dtype=float)) for x in (theta, beta))
    if not length.max(initial=0) * longest.max(initial=0) < np.finfo(np.float32).max:
        raise ValueError("scores must be finite")
    # By falling length: no product of a tile is larger than with the tile's first item.
    order = np.argsort(-longest, kind="stable").astype(np.int32)
    place = np.argsort(order).astype(np.int32)
    columns, longest = np.ascontiguousarray(beta[order].T), longest[order]
    excluded = out.indptr, place[out.indices]
    pairs = held.indptr, held.indices, np.empty(held.nnz), np.zeros(held.nnz, np.int64)
    width = min(_ITEMS, len(beta) + -len(beta) % 64)

    def count(users):
        listed, scores = theta[users], aligned(len(users), width)
        for first in range(0, len(beta), _ITEMS):
            n = min(_ITEMS, len(beta) - first)
            np.matmul(listed, columns[:, first : first + n], out=scores[:, :n])
            scores[:, n:] = -np.inf
            tile = scores, first, n, length[users] * longest[first]
            _add_tile(tile, users, (theta, beta), (order, place), excluded, pairs)

    users = np.flatnonzero(np.diff(held.indptr))
    parallel_map(count, (users[i : i + _USERS] for i in range(0, len(users), _USERS)))
    return pairs[-1]


@compiled
def _add_tile(tile, users, factors, songs, excluded, pairs):
    """Add to the rank of the users' held-out items the ones of this tile listed above them."""
    (scores, first, n, bound), (theta, beta), (order, place) = tile, factors, songs
    (out_indptr, taken), (indptr, indices, own, ranks) = excluded, pairs
    for row, user in enumerate(users):
        score = scores[row]
        for spot in range(out_indptr[user], out_indptr[user + 1]):
            if first <= taken[spot] < first + n:
                score[taken[spot] - first] = -np.inf
        # A float32 sum of K products is this near, in whatever order it is summed.
        margin = (theta.shape[1] + 4) * 2.0**-24 * bound[row] + 1e-37
        for entry in range(indptr[user], indptr[user + 1]):
            if first == 0:
                own[entry] = _exact_score(theta[user], beta[indices[entry]])
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


@partial(simd, returns=types.UniTuple(types.int64, 2))
def _count(v, score, at, n, low, high):
    """Count the scores above ``high``, and those from ``low`` on."""
    limits = (">", v.broadcast(high)), (">=", v.broadcast(low))
    counts = [cgutils.alloca_once_value(v.builder, _LONG(0)) for _ in limits]
    with v.loop(n) as (c, _):
        value = v.load(score, at, c)
        for count, limit in zip(counts, limits, strict=True):
            mask = v.builder.bitcast(v.builder.fcmp_ordered(limit[0], value, limit[1]), _MASK)
            more = v.builder.zext(v.builder.ctpop(mask), _LONG)
            v.builder.store(v.builder.add(v.builder.load(count), more), count)
    return cgutils.pack_array(v.builder, [v.builder.load(count) for count in counts])


@compiled
def _exact_score(theta, beta):
    """Return a product in float64 whose order of summation is the same everywhere."""
    total = 0.0
    for i in range(len(theta)):
        total += np.float64(theta[i]) * np.float64(beta[i])
    return total
