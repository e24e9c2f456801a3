"""Weights of interpolation."""


def cubic_weight(distance, a=-0.75):
    """Cubic convolution kernel at one distance in samples, plainly."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0
