"""Data: sources of images, the `.beton` file they are written to, and the batches read from it."""
from ebm.data.loader import Dataset, to_float, to_uint8

__all__ = ["Dataset", "to_float", "to_uint8"]
