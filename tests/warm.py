"""Imports FFCV the way that compiles nothing, for the process that others are forked from."""
from ebm.data.stream import has_ffcv

has_ffcv()
