"""TIFF files: recordings, displacement fields and reference images."""
