"""Specialists that speak through a shared workspace of few slots, against specialists that speak pairwise."""
