"""Attention kernels in Pallas for layers with a window: only the band of visible key blocks is read and computed."""
