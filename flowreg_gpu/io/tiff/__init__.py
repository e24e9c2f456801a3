"""TIFF files: recordings, displacement fields and reference images.

tifffile tells what a file means (ImageJ, OME, ScanImage, axes, metadata) and decodes compressed pages. Uncompressed
pixels are read and written by system calls on an ordinary file.
"""

from flowreg_gpu.io.tiff.flow import TiffFlowReader, TiffFlowWriter
from flowreg_gpu.io.tiff.reader import TiffReader, read_image
from flowreg_gpu.io.tiff.writer import TiffWriter

__all__ = ["TiffFlowReader", "TiffFlowWriter", "TiffReader", "TiffWriter", "read_image"]
