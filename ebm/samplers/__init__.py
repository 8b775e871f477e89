"""Samplers: each is a generator of steps, from standard normal noise to images."""
