"""Sparse mixture of experts against a dense model of equal active FLOPs, on real text: see README.md."""
