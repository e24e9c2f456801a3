"""Relaxation of one level: plain loops, the energy that it minimises, and a direct solution of the linear case."""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import spsolve

EPS = 1e-5


def problem(height, width, channels=1, seed=0):
    """Random positive semi-definite tensors, weight maps and flow, float32: (tensor, weight, flow)."""
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((2, 3, channels, height, width)) * np.array([1, 1, 0.5]).reshape(3, 1, 1, 1)
    fx, fy, ft = np.moveaxis(gradients, 1, 0)
    tensor = np.stack([(a * b).sum(0) for a, b in ((fx, fx), (fy, fy), (ft, ft), (fx, fy), (fx, ft), (fy, ft))], axis=1)
    weight = rng.uniform(0.2, 1, (channels, height, width))
    flow = rng.standard_normal((2, height, width))
    return tuple(item.astype(np.float32) for item in (tensor, weight, flow))


def data_energy(tensor, du, dv):
    """E_k of section 5, per channel: (C, H, W)."""
    j11, j22, j33, j12, j13, j23 = np.moveaxis(tensor.astype(float), 1, 0)
    return j11 * du**2 + j22 * dv**2 + 2 * (j12 * du * dv + j13 * du + j23 * dv) + j33


def robust(energy, a, beta):
    return np.ones_like(energy) if a == 1 else (1 - beta) + beta * a * (energy + EPS) ** (a - 1)


def smoothness(flow, du, dv, spacing, a, beta):
    """psi_smooth (H, W): central differences where beyond the edge lies the pixel's own value."""
    total = 0
    for component in (flow[0] + du, flow[1] + dv):
        padded = np.pad(component, 1, "edge")
        total = total + ((padded[1:-1, 2:] - padded[1:-1, :-2]) / (2 * spacing[0])) ** 2
        total = total + ((padded[2:, 1:-1] - padded[:-2, 1:-1]) / (2 * spacing[1])) ** 2
    return robust(total, a, beta)


def plain_solve(tensor, weight, flow, alpha, spacing, relaxation):
    """Section 5, pixel by pixel: (2, H, W) float64."""
    rule, omega, sweeps, lag, a_data, a_smooth, beta = relaxation
    tensor, weight, flow = (item.astype(float) for item in (tensor, weight, flow))
    height, width = flow.shape[1:]
    du, dv = np.zeros((2, height, width))
    psi, psi_smooth = np.ones_like(weight), np.ones((height, width))
    share = {"x": alpha[0] / spacing[0] ** 2, "y": alpha[1] / spacing[1] ** 2}
    j11, j22, _, j12, j13, j23 = np.moveaxis(tensor, 1, 0)
    order = [(y, x) for x in range(width) for y in range(height)]
    if rule == "block":
        order.sort(key=lambda pixel: (pixel[0] + pixel[1]) % 2)
    for sweep in range(sweeps):
        if (sweep + 1) % lag == 0:
            psi = robust(np.maximum(data_energy(tensor, du, dv), 0), a_data, beta)
            if a_smooth < 1:
                psi_smooth = smoothness(flow, du, dv, spacing, a_smooth, beta)
        for y, x in order:
            diagonal, sum_u, sum_v = 0.0, 0.0, 0.0
            for axis, ny, nx in (("x", y, x - 1), ("x", y, x + 1), ("y", y - 1, x), ("y", y + 1, x)):
                ny, nx = min(max(ny, 0), height - 1), min(max(nx, 0), width - 1)
                c = share[axis] * (psi_smooth[y, x] + psi_smooth[ny, nx]) / 2
                diagonal += c
                sum_u += c * (flow[0, ny, nx] + du[ny, nx] - flow[0, y, x])
                sum_v += c * (flow[1, ny, nx] + dv[ny, nx] - flow[1, y, x])
            robustly = weight[:, y, x] * psi[:, y, x]
            a11, a22 = diagonal + robustly @ j11[:, y, x], diagonal + robustly @ j22[:, y, x]
            a12 = robustly @ j12[:, y, x]
            b1, b2 = sum_u - robustly @ j13[:, y, x], sum_v - robustly @ j23[:, y, x]
            if rule == "sor":
                du[y, x] = (1 - omega) * du[y, x] + omega * (b1 - a12 * dv[y, x]) / a11
                dv[y, x] = (1 - omega) * dv[y, x] + omega * (b2 - a12 * du[y, x]) / a22
            else:
                new_u, new_v = np.linalg.solve([[a11, a12], [a12, a22]], [b1, b2])
                du[y, x] += omega * (new_u - du[y, x])
                dv[y, x] += omega * (new_v - dv[y, x])
    return np.stack([du, dv])


def level_energy(tensor, weight, flow, alpha, spacing, a_data, increment):
    """Twice the energy of one level with quadratic smoothness."""
    du, dv = increment.astype(float)
    data = (weight * (np.maximum(data_energy(tensor, du, dv), 0) + EPS) ** a_data).sum()
    total = flow.astype(float) + increment
    along_x = alpha[0] / spacing[0] ** 2 * (np.diff(total, axis=2) ** 2).sum()
    return data + along_x + alpha[1] / spacing[1] ** 2 * (np.diff(total, axis=1) ** 2).sum()


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def direct_solution(tensor, weight, flow, alpha, spacing):
    """Minimiser of the quadratic energy by a sparse direct solver."""
    height, width = flow.shape[1:]
    size = height * width
    index = np.arange(size).reshape(height, width)
    laplacian = csr_matrix((size, size))
    for axis, c in ((1, alpha[0] / spacing[0] ** 2), (0, alpha[1] / spacing[1] ** 2)):
        first, second = np.delete(index, -1, axis).ravel(), np.delete(index, 0, axis).ravel()
        edges = np.arange(first.size)
        ones = np.ones(first.size)
        difference = csr_matrix((np.r_[ones, -ones], (np.r_[edges, edges], np.r_[first, second])), (first.size, size))
        laplacian = laplacian + c * difference.T @ difference
    j11, j22, _, j12, j13, j23 = ((weight * plane).sum(0).ravel() for plane in np.moveaxis(tensor.astype(float), 1, 0))
    rows, columns = np.r_[index.ravel(), index.ravel() + size], np.r_[index.ravel(), index.ravel() + size]
    system = csr_matrix((np.r_[j11, j22], (rows, columns)), (2 * size, 2 * size))
    coupling = np.r_[index.ravel(), index.ravel() + size], np.r_[index.ravel() + size, index.ravel()]
    system = system + csr_matrix((np.r_[j12, j12], coupling), (2 * size, 2 * size))
    blocks = laplacian.tocoo()
    both = np.r_[blocks.row, blocks.row + size], np.r_[blocks.col, blocks.col + size]
    system = system + csr_matrix((np.r_[blocks.data, blocks.data], both), (2 * size, 2 * size))
    pull = -np.r_[laplacian @ flow[0].ravel().astype(float), laplacian @ flow[1].ravel().astype(float)]
    return spsolve(system.tocsc(), pull - np.r_[j13, j23]).reshape(2, height, width)
