"""Compiling for TPUs and GPUs on a machine that has neither, and reading what the compiler made."""
