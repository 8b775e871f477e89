"""Metrics: each measures a trained run by its settings in configs/metric/ and returns figures with their protocol."""
