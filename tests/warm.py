"""Imports FFCV the way that compiles nothing, for the process that others are forked from."""
from ebm.data.stream import import_ffcv

import_ffcv()
