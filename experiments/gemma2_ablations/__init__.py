"""Gemma 2's choices of architecture, one changed at a time (arXiv 2408.00118, section 5)."""
