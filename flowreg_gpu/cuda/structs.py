"""The C structs that the host fills, or of which it must know the size, as NumPy dtypes.

Every launcher lists those of its kernel file in `STRUCTS`, and what else it says of the file's sizes in `SIZES`: C++
expressions and their values. The tests hold both against the file, the sizes with the compiler's `static_assert`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["PSI", "SMOOTHNESS", "SPAN", "filled", "struct"]


def struct(**fields: DTypeLike) -> np.dtype[Any]:
    """Dtype with the layout that C gives a struct of these fields."""
    return np.dtype(list(fields.items()), align=True)


def filled(kind: np.dtype[Any], **values: Any) -> NDArray[Any]:
    """A struct filled by name: an array of no dimensions, which CuPy passes to a kernel by value.

    Raises
    ------
    TypeError
        A field is missing, or there is none of that name.
    """
    names = kind.names or ()
    if values.keys() != set(names):
        raise TypeError(f"fields {tuple(values)} of a struct, expected {names}")
    return np.array(tuple(values[name] for name in names), kind)


PSI = struct(constant=np.float32, factor=np.float32, power=np.float32)
SMOOTHNESS = struct(along=np.float32, across=np.float32)
SPAN = struct(first=np.int32, count=np.int32)
