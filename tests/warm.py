"""Imports FFCV the way that compiles nothing, for the process that others are forked from; the last thing it imports."""
import gc

from ebm.data.stream import has_ffcv

has_ffcv()
gc.freeze()  # nobody forked goes through what was imported
