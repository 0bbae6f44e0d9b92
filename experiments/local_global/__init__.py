"""Gemma 2's alternation of local and global layers against all-global and all-local models: see README.md."""
