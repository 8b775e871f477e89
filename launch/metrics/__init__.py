"""Metrics: each measures a trained run by its settings in configs/metric/ and gives figures with their protocol."""
