"""Metadata of a TIFF file: read, and written into a file of the same kind."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

__all__ = ["TiffMetadata", "count_planes", "description_arguments", "display_arguments", "is_ome", "read_metadata"]

_OME_PIXELS = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ", "TimeIncrement")
_OME_CHANNEL = ("Name", "Color", "Fluor", "EmissionWavelength", "ExcitationWavelength")


@dataclasses.dataclass(frozen=True)
class TiffMetadata:
    """Metadata of a file, as far as a file of the same kind can hold them.

    Attributes
    ----------
    kind : str
        'imagej', 'ome', 'scanimage', 'shaped' (tifffile's own), 'plain' (pages and nothing more) or another name that
        tifffile gives a format.
    description, software, artist : str
        Tags of the first page, empty if missing.
    resolution : ((int, int), (int, int)) or None
        Pixels per unit along x and y, as fractions.
    resolutionunit : int or None
        1 (none), 2 (inch) or 3 (centimetre).
    imagej, ome, shaped : dict
        Metadata of these formats: ImageJ's description lines and Info, Labels, Ranges, LUTs, ...; OME's pixel sizes,
        time increment, units and channels; tifffile's JSON.
    photometric, extrasamples, colormap
        How the samples of a pixel are to be shown.
    """

    kind: str
    description: str = ""
    software: str = ""
    artist: str = ""
    resolution: tuple[tuple[int, int], tuple[int, int]] | None = None
    resolutionunit: int | None = None
    imagej: dict[str, Any] = dataclasses.field(default_factory=dict)
    ome: dict[str, Any] = dataclasses.field(default_factory=dict)
    shaped: dict[str, Any] = dataclasses.field(default_factory=dict)
    photometric: int = 1
    extrasamples: tuple[int, ...] = ()
    colormap: NDArray[np.uint16] | None = None


# Reading


def _ome_metadata(xml: str) -> dict[str, Any]:
    """Return pixel sizes, time increment and channels of the first image, as tifffile's writer takes them."""
    image = next(element for element in ElementTree.fromstring(xml) if element.tag.endswith("}Image"))
    pixels = next(element for element in image if element.tag.endswith("}Pixels"))
    metadata: dict[str, Any] = {}
    if "Name" in image.attrib:
        metadata["Name"] = image.attrib["Name"]
    for element in image:
        name = element.tag.rpartition("}")[2]
        if name in ("AcquisitionDate", "Description") and element.text:
            metadata[name] = element.text
    for key in (*_OME_PIXELS, *(f"{key}Unit" for key in _OME_PIXELS), "SignificantBits"):
        if key in pixels.attrib:
            metadata[key] = pixels.attrib[key]
    channels = [element.attrib for element in pixels if element.tag.endswith("}Channel")]
    names = (*_OME_CHANNEL, "EmissionWavelengthUnit", "ExcitationWavelengthUnit")
    shared = [key for key in names if channels and all(key in channel for channel in channels)]
    if shared:
        metadata["Channel"] = {key: [channel[key] for channel in channels] for key in shared}
    return metadata


def read_metadata(tif: tifffile.TiffFile, page: Any, kind: str) -> TiffMetadata:
    """Return the metadata of a file of that kind; `page` is the first page of the recording."""
    tags = page.tags
    resolution = None
    if 282 in tags and 283 in tags and all(tags[code].value[1] for code in (282, 283)):
        resolution = (tuple(tags[282].value), tuple(tags[283].value))
    shaped = {}
    if kind == "shaped" and page.shaped_description.startswith("{"):
        shaped = json.loads(page.shaped_description)
    return TiffMetadata(
        kind=kind,
        description=page.imagej_description if kind == "imagej" else page.description,
        software=page.software,
        artist=str(tags.valueof(315) or ""),
        resolution=resolution,
        resolutionunit=int(tags[296].value) if 296 in tags else None,
        imagej=dict(tif.imagej_metadata or {}) if kind == "imagej" else {},
        ome=_ome_metadata(tif.ome_metadata) if kind == "ome" else {},
        shaped={key: value for key, value in shaped.items() if key not in ("shape", "truncated")},
        photometric=int(page.photometric),
        extrasamples=tuple(int(sample) for sample in page.extrasamples),
        colormap=page.colormap,
    )


# Writing


def _imagej_description(metadata: TiffMetadata, axes: str, shape: Sequence[int]) -> str:
    """Return ImageJ's description with the counts of `shape`; its other lines are kept."""
    sizes = dict(zip(axes, shape, strict=True))
    counts = {"images": math.prod(size for axis, size in sizes.items() if axis not in "YXS")}
    counts |= {key: sizes.get(axis, 1) for key, axis in (("channels", "C"), ("slices", "Z"), ("frames", "T"))}
    lines = metadata.description.splitlines()
    if not lines:
        lines = ["ImageJ=1.11a", "hyperstack=true", "mode=grayscale", "loop=false"]
    kept = [line for line in lines[1:] if line.partition("=")[0] not in counts]
    return "\n".join([lines[0], *(f"{key}={n}" for key, n in counts.items() if key == "images" or n > 1), *kept, ""])


def is_ome(metadata: TiffMetadata, axes: str) -> bool:
    """Tell whether OME can hold the axes: it has no name for some that other software adds."""
    return metadata.kind == "ome" and set(axes) <= set("TZCYXS")


def description_arguments(
    metadata: TiffMetadata, axes: str, shape: Sequence[int], dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Return the arguments of tifffile's writer that make the file one of the same kind."""
    if metadata.kind == "imagej":
        keys = ("Info", "Ranges", "LUTs", "Plot", "ROI", "Overlays", "Properties")
        kept = {key: metadata.imagej[key] for key in keys if key in metadata.imagej}
        labels = metadata.imagej.get("Labels", [])
        labels = [labels] if isinstance(labels, str) else labels
        if len(labels) == count_planes(axes, shape):
            kept["Labels"] = labels
        description = _imagej_description(metadata, axes, shape).encode()
        tags = tifffile.imagej_metadata_tag(kept, "<" if sys.byteorder == "little" else ">")
        return {"metadata": None, "description": description, "extratags": tags}
    if metadata.kind == "plain":
        return {"metadata": None, "description": metadata.description.encode() or None}
    if is_ome(metadata, axes):
        ome = {key: value for key, value in metadata.ome.items() if key != "SignificantBits" or dtype.kind == "u"}
        return {"metadata": {**ome, "axes": axes}}
    if metadata.kind == "shaped":
        # tifffile names axes Q, I, S, Y and X by itself: naming them would make them other axes than they were.
        named = "axes" in metadata.shaped or bool(set(axes) & set("TC"))
        return {"metadata": {**metadata.shaped, "axes": axes} if named else metadata.shaped}
    arguments: dict[str, Any] = {"metadata": {"axes": axes}}
    if metadata.kind == "scanimage":
        arguments["description"] = metadata.description.encode() or None
        arguments["extratags"] = [(315, 2, None, metadata.artist.encode(), True)] if metadata.artist else []
    return arguments


def display_arguments(metadata: TiffMetadata, axes: str, shape: Sequence[int], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the arguments of tifffile's writer that say how pixels are shown and how large they are."""
    arguments: dict[str, Any] = {"photometric": metadata.photometric if metadata.photometric in (0, 1) else 1}
    samples = 1  # one sample has no arrangement, and tifffile refuses one for it
    if axes.endswith(("YXS", "YXC")) or "SYX" in axes:
        samples = shape[axes.index("SYX")] if "SYX" in axes else shape[-1]
    if samples > 1:
        arguments["planarconfig"] = "separate" if "SYX" in axes else "contig"
        if metadata.photometric == 2 and samples in (3, 4):
            arguments["photometric"] = 2
    elif metadata.colormap is not None and metadata.colormap.shape == (3, 256**dtype.itemsize) and dtype.kind == "u":
        arguments |= {"photometric": 3, "colormap": metadata.colormap}
    if metadata.resolution is not None:
        arguments |= {"resolution": metadata.resolution, "resolutionunit": metadata.resolutionunit}
    if metadata.software and metadata.software.isascii():
        arguments["software"] = metadata.software
    return arguments


def count_planes(axes: str, shape: Sequence[int]) -> int:
    """Count the pages of a block: each holds Y and X, and the samples of a pixel where these come last."""
    samples = axes.endswith("YXC")
    return math.prod(n for axis, n in zip(axes, shape, strict=True) if axis not in ("YXSC" if samples else "YXS"))
