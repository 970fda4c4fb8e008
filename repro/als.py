"""Half a sweep of alternating least squares: all rows of one factor matrix, the other held fixed.

With Y the fixed factors, c = 1 + s the confidences of a row's plays and n its prior mean, a row
minimises sum_i c_i (p_i - y_i.x)^2 + ridge ||x - n||^2 over all columns i (eqs. 1 and 2), that is

    (Y'Y + sum s_i y_i y_i' + ridge I) x = sum c_i y_i + ridge n,    sums over the row's plays.

:func:`solve_slowly` does just that. :func:`solve` first whitens Y by the Cholesky factor of the
part that all rows share, A = Y'Y + ridge I = L L': with v_i = L^-1 y_i and z = L' x a row is

    (I + sum s_i v_i v_i') z = sum c_i v_i + ridge L^-1 n,

whose eigenvalues lie between 1 and the highest confidence, safe in float32 whatever the ridge.
With G the rows sqrt(s_i) v_i', a row of at most K plays is solved through I + G G' (Woodbury), a
longer one through I + G'G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from scipy.linalg import solve_triangular

from repro import parallel

_CHUNKS = 64  # of rows; more than threads, so that none waits long for the last
_STRIP = 64  # plays of a long row taken at a time: their factors stay in the nearest cache
_LANES = 16
_AHEAD = 8  # plays whose factors are asked for before their turn
_BATCH_FLOATS = 2**24  # of gathered factors in a batch on a GPU
_FAST = {"reassoc", "contract", "nsz", "arcp"}  # lets sums be vectorised; NaN stays NaN


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


def _compiled(device) -> bool:
    return torch.device(device).type == "cpu"


@dataclass
class Rows:
    """A sparse surplus matrix on the device, its rows cut into chunks of like length."""

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
        if _compiled(device):
            short, long = np.minimum(length, factors), np.maximum(length, factors)
            work = np.cumsum(short**2 * long + short**3 / 3 + 50.0 * factors * length)
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
    if not _compiled(fixed.device):
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
    white = np.zeros((len(y), k + -k % 8), np.float32)  # whole vectors of eight

    def whiten(block):
        white[block, :k] = y[block] @ inverse.T

    parallel.over(whiten, blocks)
    x = np.zeros((len(plays[0]) - 1, k), np.float32)

    def solve_chunk(chunk):
        chunk = chunk.numpy()
        z = np.zeros((len(chunk), white.shape[1]), np.float32)
        if prior is not None:
            z[:, :k] = ridge * prior.numpy()[chunk] @ inverse.T
        if steps is None:
            _solve_rows(chunk, *plays, white, z, k)
        else:
            mean = z.copy()
            z[:, :k] = start.numpy()[chunk] @ lower
            _step_rows(chunk, *plays, white, z, mean, steps)
        x[chunk] = z[:, :k] @ inverse

    parallel.over(solve_chunk, rows.chunks)
    return x


def _gram(y):
    return y.T @ y


@njit(nogil=True, cache=True, fastmath=_FAST)
def _solve_rows(rows, indptr, indices, root, white, z, k):
    """Replace the prior means in ``z``, one for each of the listed rows, by the solutions."""
    width = white.shape[1]
    longest = 0
    for row in rows:
        longest = max(longest, indptr[row + 1] - indptr[row])
    side = min(longest, k) + 6
    gathered = np.zeros(max(_STRIP * (k + 2 * _LANES), side * width), np.float32)
    work = np.zeros((2, side * (side + 2 * _LANES)), np.float32)
    for turn in range(len(rows)):
        if turn + 1 < len(rows):  # the next row's factors come in while this one is solved
            first = indptr[rows[turn + 1]]
            for place in range(first, min(first + _STRIP, indptr[rows[turn + 1] + 1])):
                _prefetch_row(white, indices[place])
        row, x = rows[turn], z[turn]
        plays = slice(indptr[row], indptr[row + 1])
        length = indptr[row + 1] - indptr[row]
        n = min(length, k)
        stride = n + 1 + _LANES + -(n + 1) % _LANES
        system = work[0, : (n + 6) * stride].reshape(n + 6, stride)
        scaled = work[1, : (n + 6) * stride].reshape(n + 6, stride)
        system[:] = 0
        if length <= k:
            g = gathered[: (n + 3) * width].reshape(n + 3, width)
            _short_system(indices[plays], root[plays], white, x, g, system)
            _eliminate(system, scaled, n)
            for place in range(length):
                scale = system[place, n]
                for c in range(width):
                    x[c] += scale * g[place, c]
        else:
            g = gathered[: _STRIP * stride].reshape(_STRIP, stride)
            _long_system(indices[plays], root[plays], white, x, g, system)
            _eliminate(system, scaled, n)
            x[:k] = system[:k, k]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _short_system(indices, root, white, mean, g, system):
    """Write I + G G' and, as one more column, its right-hand side into ``system``."""
    n, width = len(indices), white.shape[1]
    for place in range(n):
        v = white[indices[place]]
        scale = root[place]
        for c in range(width):
            g[place, c] = scale * v[c]
        system[place, place] = 1
        system[place, n] = scale + 1 / scale
    for c in range(width):
        g[n, c] = -mean[c]
        g[n + 1, c] = 0
        g[n + 2, c] = 0
    for i in range(0, n, 3):
        for j in range(i, n + 1, 3):
            s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = np.float32(0)
            for c in range(width):
                a0, a1, a2 = g[i, c], g[i + 1, c], g[i + 2, c]
                b0, b1, b2 = g[j, c], g[j + 1, c], g[j + 2, c]
                s00 += a0 * b0
                s01 += a0 * b1
                s02 += a0 * b2
                s10 += a1 * b0
                s11 += a1 * b1
                s12 += a1 * b2
                s20 += a2 * b0
                s21 += a2 * b1
                s22 += a2 * b2
            system[i, j] += s00
            system[i, j + 1] += s01
            system[i, j + 2] += s02
            system[i + 1, j] += s10
            system[i + 1, j + 1] += s11
            system[i + 1, j + 2] += s12
            system[i + 2, j] += s20
            system[i + 2, j + 1] += s21
            system[i + 2, j + 2] += s22


@njit(nogil=True, cache=True, fastmath=_FAST)
def _long_system(indices, root, white, mean, g, system):
    """Write I + G'G and, as one more column, its right-hand side into ``system``."""
    k, stride = len(system) - 6, system.shape[1]
    g[:, k:] = 0
    for i in range(k):
        system[i, i] = 1
        system[i, k] = mean[i]
    flat, target = g.reshape(g.size), system.reshape(system.size)
    for begin in range(0, len(indices), _STRIP):
        depth = min(_STRIP, len(indices) - begin)
        for place in range(depth):
            if begin + place + _AHEAD < len(indices):
                _prefetch_row(white, indices[begin + place + _AHEAD])
            v = white[indices[begin + place]]
            scale = root[begin + place]
            for c in range(k):
                g[place, c] = scale * v[c]
            g[place, k] = scale + 1 / scale
        for i in range(0, k, 6):
            for j in range(i, k + 1, _LANES):
                _add_product(flat[i:], stride, flat[j:], stride, depth, target[i * stride + j :])


@njit(nogil=True, cache=True, fastmath=_FAST)
def _eliminate(system, scaled, n):
    """Solve the ``n`` equations whose upper triangle and right-hand side are in ``system``.

    A Cholesky factorisation without roots, M = U' D^-1 U, six rows at a time; ``scaled`` takes
    -D^-1 U. The solution takes the place of the right-hand side.
    """
    stride = system.shape[1]
    flat, minus = system.reshape(system.size), scaled.reshape(scaled.size)
    for i in range(0, n, 6):
        for j in range(i, n + 1, _LANES):
            _add_product(minus[i:], stride, flat[j:], stride, i, flat[i * stride + j :])
        for row in range(i, min(i + 6, n)):
            done, minus_l = system[row, i : n + 1], scaled[row, i : n + 1]
            inverse = 1 / system[row, row]
            for c in range(len(done)):
                minus_l[c] = -inverse * done[c]
            for below in range(row + 1, min(i + 6, n)):
                rest, share = system[below, i : n + 1], scaled[row, below]
                for c in range(len(rest)):
                    rest[c] += share * done[c]
    x = system[:n, n]
    for row in range(n):
        x[row] = -scaled[row, n]
    for row in range(n - 1, 0, -1):
        for above in range(row):
            x[above] += scaled[above, row] * x[row]


@njit(nogil=True, cache=True)
def _prefetch_row(array, row):
    for c in range(0, array.shape[1], 16):
        _prefetch(array, np.int64(row) * array.shape[1] + c)


@intrinsic
def _prefetch(typing, array, place):
    """Ask for the cache line at ``place`` of ``array``; numba has no word for it."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        ask = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        where = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(ask, [where, flag(0), flag(3), flag(1)])  # to read, keep close, data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def _add_product(typing, a, a_stride, b, b_stride, depth, out):
    """Add A'B to six rows of ``_LANES`` columns of ``out``, which has the stride of ``b``.

    The one loop that the compiler does not vectorise by itself: all sums stay in registers.
    """

    def generate(context, builder, signature, args):
        _, a_stride, _, b_stride, depth, _ = args
        a, b, out = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 5)
        )
        integer = ir.IntType(32)
        vector = ir.VectorType(ir.FloatType(), _LANES)
        everywhere = ir.VectorType(integer, _LANES)(None)
        unset = vector(ir.Undefined)

        def at(pointer, row, stride):
            place = builder.mul(row, stride) if stride is not None else row
            return builder.gep(pointer, [place])

        def vectors(pointer):
            return builder.bitcast(pointer, vector.as_pointer())

        rows = [vectors(at(out, ir.IntType(64)(r), b_stride)) for r in range(6)]
        sums = [cgutils.alloca_once_value(builder, builder.load(row, align=4)) for row in rows]
        with cgutils.for_range(builder, depth) as loop:
            left = at(a, loop.index, a_stride)
            right = builder.load(vectors(at(b, loop.index, b_stride)), align=4)
            for r, total in enumerate(sums):
                one = builder.load(at(left, ir.IntType(64)(r), None))
                same = builder.insert_element(unset, one, integer(0))
                same = builder.shuffle_vector(same, unset, everywhere)
                product = builder.fmul(same, right, flags=("contract",))
                added = builder.fadd(builder.load(total), product, flags=("contract",))
                builder.store(added, total)
        for row, total in zip(rows, sums, strict=True):
            builder.store(builder.load(total), row, align=4)
        return context.get_dummy_value()

    return types.void(a, types.int64, b, types.int64, types.int64, out), generate


@njit(nogil=True, cache=True, fastmath=_FAST)
def _step_rows(rows, indptr, indices, root, white, z, mean, steps):
    """Take ``steps`` of conjugate gradients from ``z``, without any row's Gram matrix."""
    width = white.shape[1]
    residual = np.empty(width, np.float32)
    way = np.empty(width, np.float32)
    image = np.empty(width, np.float32)
    for place, row in enumerate(rows):
        plays = slice(indptr[row], indptr[row + 1])
        x = z[place]
        for c in range(width):
            residual[c] = mean[place, c] - x[c]
        _add_plays(indices[plays], root[plays], white, x, 1, -1, residual)
        norm = np.float32(0)
        for c in range(width):
            way[c] = residual[c]
            norm += residual[c] * residual[c]
        enough = np.float32(1e-13) * norm  # no float32 residual gets much smaller
        for _ in range(steps):
            if norm <= enough:
                break
            image[:] = way
            _add_plays(indices[plays], root[plays], white, way, 0, 1, image)
            curvature = np.float32(0)
            for c in range(width):
                curvature += way[c] * image[c]
            length = norm / curvature
            before, norm = norm, np.float32(0)
            for c in range(width):
                x[c] += length * way[c]
                residual[c] -= length * image[c]
                norm += residual[c] * residual[c]
            for c in range(width):
                way[c] = residual[c] + norm / before * way[c]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _add_plays(indices, root, white, x, target, sign, out):
    """Add the sum of (target c_i + sign s_i v_i.x) v_i over a row's plays to ``out``."""
    n = len(indices)
    for begin in range(0, n, 4):
        for ahead in range(begin + _AHEAD, min(begin + _AHEAD + 4, n)):
            _prefetch_row(white, indices[ahead])
        # The last play fills up the last four, with no weight.
        i0, i1, i2, i3 = begin, min(begin + 1, n - 1), min(begin + 2, n - 1), min(begin + 3, n - 1)
        v0, v1 = white[indices[i0]], white[indices[i1]]
        v2, v3 = white[indices[i2]], white[indices[i3]]
        d0 = d1 = d2 = d3 = np.float32(0)
        for c in range(len(out)):
            d0 += v0[c] * x[c]
            d1 += v1[c] * x[c]
            d2 += v2[c] * x[c]
            d3 += v3[c] * x[c]
        s0, s1, s2, s3 = root[i0] ** 2, root[i1] ** 2, root[i2] ** 2, root[i3] ** 2
        w0 = target * (1 + s0) + sign * s0 * d0
        w1 = (target * (1 + s1) + sign * s1 * d1) * (begin + 1 < n)
        w2 = (target * (1 + s2) + sign * s2 * d2) * (begin + 2 < n)
        w3 = (target * (1 + s3) + sign * s3 * d3) * (begin + 3 < n)
        w0, w1, w2, w3 = np.float32(w0), np.float32(w1), np.float32(w2), np.float32(w3)
        for c in range(len(out)):
            out[c] += w0 * v0[c] + w1 * v1[c] + w2 * v2[c] + w3 * v3[c]


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
