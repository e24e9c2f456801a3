"""How closely results have to agree, each number with its origin; tests name them and invent none."""

# --- one operation against an independent float64 implementation, relative to the largest value ---

# Sums of tens of float32 terms of images scaled to 0-1: a few units of 6e-8.
FILTER = 2e-6
# Interpolation at coordinates that float32 holds exactly: the rounding of weights and sums only.
INTERPOLATION = 1e-6
# Motion tensor, per plane and relative to its maximum. gray: products of differences; measured 3e-7.
TENSOR_GRAY = 1e-6
# gc divides squared second differences of float32 images by themselves plus 1e-6, so that their rounding, about 1e-7,
# counts against 1e-3; measured 4e-5, of which half is the rounding of the images to float32 alone.
TENSOR_GC = 1e-4
# cs sees differences of neighbours (rounding 1e-7) against eps = 0.1 / 255; measured 6e-6.
TENSOR_CS = 2e-5
# Two float64 programs of one formula.
DOUBLE = 1e-12
# x^p by series in float32 (solver.py): eps times the size of the logarithm, which is at most 20.
POWER = 2e-6
# A few sweeps in float32 against the same sweeps in float64; psi near 1e-5 amplifies the rounding of the energy.
SWEEPS = 1e-4
# Converged float32 relaxation against a direct float64 solution of the linear system: rounding times its condition.
LINEAR_SYSTEM = 1e-4
# Share of the reachable decrease of a level's energy that the chosen relaxation may leave, on 97 x 128 and 64 x 80
# synthetic levels with noise: measured 0.0007 and (alpha 200; else 0.015) 0.028; upstream's rule leaves 0.02 to 0.04.
ENERGY_FINE = 0.002
ENERGY_COARSE = 0.04
# Float32 pixels reduced in float64.
STATISTICS = 1e-6

# --- rigid pre-alignment, pixels ---

# A peak on the pixel grid; exact for displacements of whole pixels.
SHIFT_WHOLE = 0.0
# Grid of 1/10 px, and the bias of windowed images whose content differs at the edges.
SHIFT_SUBPIXEL = 0.15
# Upstream's results on a real frame: it windows and resolves wrapped peaks otherwise. One pixel of the grid without
# refinement; measured 0.0 and 0.4 / 0.2 px with it (full size and 64 px, whose pixels are 4 and 2 px wide).
SHIFT_UPSTREAM = {"shift_up1": 1.0, "shift_up10": 0.35, "shift_hw64_up10": 0.5}

# --- flow, pixels ---

# Mean end-point error on 96 x 112 analytic pairs without noise, 8 px margin; see test_flow.py for what was measured.
KNOWN_MOTION = 0.1
# Median difference to upstream's flow on real frames in `sor` mode. Two correct programs of this model differ by
# 0.03-0.1 px there; upstream's remap, quantised to 1/32 px, alone moves the flow by 0.03 (alpha 4) and 0.08 (1.5).
UPSTREAM_MEDIAN = 0.06
UPSTREAM_MEDIAN_ALPHA_1_5 = 0.12
# The quantised warp acts in pixels of a grid 3.8 times coarser than full resolution.
UPSTREAM_MEDIAN_FAST = 0.065
# Image mismatch after registration over upstream's: "within 0.3 % or below", either solver.
UPSTREAM_MISMATCH = 1.003
