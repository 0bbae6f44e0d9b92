"""The attention kernels, measured without the hardware and, where there is some, with it."""
