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
# A few sweeps in float32 against the same sweeps in float64, well-conditioned tensors; measured 1.1e-6.
SWEEPS = 1e-5
# Converged float32 relaxation against a direct float64 solution of the linear system; measured 6e-7.
LINEAR_SYSTEM = 1e-5
# Share of the reachable decrease of a level's energy that the chosen relaxation may leave, on 97 x 128 and 64 x 80
# synthetic levels with noise: measured 0.0007 and (alpha 200; else 0.015) 0.028; upstream's rule leaves 0.02 to 0.04.
ENERGY_FINE = 0.002
ENERGY_COARSE = 0.04
# Float32 pixels reduced in float64.
STATISTICS = 1e-6
# The same sums on the device in another order and in one pass: at worst n times the rounding of 1e-16, n <= 1e5 values;
# measured 5e-14, and 4e-13 for ten grey values on a background of 65 000.
DEVICE_STATISTICS = 1e-11

# --- rigid pre-alignment, pixels ---

# Grid of 1/10 px, and the bias of windowed images whose content differs at the edges; measured 0.1.
SHIFT_SUBPIXEL = 0.15
# The same in pixels of the downsampled images; measured 0.2.
SHIFT_DOWNSAMPLED = 0.3
# Upstream's results on a real frame: it refines from another start and resolves wrapped peaks otherwise. One pixel
# without refinement; with it measured 0.0 at full size, and 0.4 / 0.2 px at 64 x 64, whose pixels are 4 x 2 wide.
SHIFT_UPSTREAM = {"shift_up1": 1.0, "shift_up10": 0.35, "shift_hw64_up10": 0.5}
# CPU and device: the same sample of the same grid, rounded to float32; measured 0.
SHIFT_DEVICE = 1e-6

# --- flow, pixels ---

# Mean end-point error on 96 x 112 analytic pairs without noise, 8 px margin. Measured: 0.046 at the full pyramid, 0.08
# and 0.13 where it stops at 46 and 29 columns.
KNOWN_MOTION = 0.06
KNOWN_MOTION_BALANCED = 0.1
KNOWN_MOTION_FAST = 0.17
# The census signature of a smooth texture is all but binary (eps = 0.1 / 255), which leaves little to tell fractions
# of a pixel by: 0.16 measured on fine texture, iterated to convergence too; upstream's census flow agrees to 0.01 px.
KNOWN_MOTION_CENSUS = 0.2
# Rigid shifts of fine grain: measured 0.016, and 0.05 where the pre-alignment leaves a fraction of a pixel.
KNOWN_SHIFT = 0.06
# Our CPU and GPU backends, should they not round alike (docs/dev/model.md, section 8).
BACKENDS_MEDIAN = 0.001
BACKENDS_99TH = 0.03
# Median difference to upstream's flow on real frames in `sor` mode. Two correct programs of this model differ by
# 0.03-0.1 px there; upstream's remap, quantised to 1/32 px, alone moves the flow by 0.03 (alpha 4) and 0.08 (1.5).
UPSTREAM_MEDIAN = 0.06
UPSTREAM_MEDIAN_ALPHA_1_5 = 0.12
# Image mismatch after registration over upstream's: "within 0.3 % or below", either solver.
UPSTREAM_MISMATCH = 1.003
