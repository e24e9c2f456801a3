"""Measures that tell whether a registration has done good, from frames and figures that are handed in."""
