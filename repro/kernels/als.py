"""Half a sweep of alternating least squares: all rows of one factor matrix, the other held fixed.

With Y the fixed factors, c = 1 + s the confidences of a row's plays and n its prior mean, a row
minimises sum_i c_i (p_i - y_i.x)^2 + ridge ||x - n||^2 over all columns i (eqs. 1 and 2), that is

    (Y'Y + sum s_i y_i y_i' + ridge I) x = sum c_i y_i + ridge n,    sums over the row's plays.

:func:`solve_slowly` does just that. :func:`solve` first whitens Y by the Cholesky factor of the
part that all rows share, A = Y'Y + ridge I = L L': with v_i = L^-1 y_i and z = L' x a row is

    (I + sum s_i v_i v_i') z = sum c_i v_i + ridge L^-1 n,

whose eigenvalues lie between 1 and the highest confidence, so that float32 solves it safely; only
the way back, x = L'^-1 z, can lose digits, where A itself is ill-conditioned. With G the rows
sqrt(s_i) v_i', a row of at most K plays is solved through I + G G' (Woodbury), a longer one through
I + G'G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numba import types
from numba.extending import intrinsic
from scipy.linalg import solve_triangular

from repro.kernels import parallel
from repro.kernels.vectors import (
    LANES,
    PANEL,
    Vectors,
    add_product,
    add_rows,
    aligned,
    compiled,
    copy_scaled,
    dot_column,
    dot_tile,
    prefetch,
)

_CHUNKS = 64  # of rows: many, so that no thread waits long for the last
_STRIP = 64  # plays of a long row taken at a time: their factors stay in the nearest cache
_AHEAD = 8  # plays whose factors are asked for before their turn
_BATCH_FLOATS = 2**24  # of gathered factors in a batch on a GPU


def solve_slowly(fixed, surplus: sp.csr_matrix, ridge: float, prior=None) -> np.ndarray:
    """Solve one row after the other in float64: what :func:`solve` must give.

    Parameters
    ----------
    fixed : array, columns x K
    surplus : csr_matrix, rows x columns
        Confidence above one of each play.
    ridge : float
    prior : array, rows x K, optional
        Prior means; zero when absent.

    Returns
    -------
    array of float64, rows x K
    """
    y = np.asarray(fixed, np.float64)
    shared = y.T @ y + ridge * np.eye(y.shape[1])
    x = np.zeros((surplus.shape[0], y.shape[1]))
    for row in range(len(x)):
        plays = slice(surplus.indptr[row], surplus.indptr[row + 1])
        y_row, s = y[surplus.indices[plays]], surplus.data[plays].astype(np.float64)
        right = (1.0 + s) @ y_row
        if prior is not None:
            right = right + ridge * np.asarray(prior[row], np.float64)
        x[row] = np.linalg.solve(shared + (y_row.T * s) @ y_row, right)
    return x


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


def solve(fixed, rows: Rows, ridge: float, prior=None, start=None, steps=None) -> torch.Tensor:
    """Solve all rows at once, as :func:`solve_slowly`, in float32 and on all cores or the GPU.

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
    with parallel.one_blas_thread():
        return torch.from_numpy(_solve_chunks(fixed, rows, ridge, prior, start, steps))


def _solve_chunks(fixed, rows: Rows, ridge, prior, start, steps) -> np.ndarray:
    y, plays = fixed.numpy(), (rows.indptr.numpy(), rows.indices.numpy(), rows.root.numpy())
    k = y.shape[1]
    blocks = [slice(begin, begin + 4096) for begin in range(0, len(y), 4096)]
    grams = parallel.over(lambda block: _gram(y[block].astype(np.float64)), blocks)
    lower = np.linalg.cholesky(sum(grams, ridge * np.eye(k)))
    inverse = solve_triangular(lower, np.eye(k), lower=True)
    white = aligned(len(y), k + -k % LANES)

    def whiten(block):
        white[block, :k] = y[block] @ inverse.T

    parallel.over(whiten, blocks)
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

    parallel.over(solve_chunk, rows.chunks)
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
