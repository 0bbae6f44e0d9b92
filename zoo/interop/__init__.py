"""Checkpoints of other programs in and out: Hugging Face folders, google-deepmind/gemma trees, and our own run directories."""
