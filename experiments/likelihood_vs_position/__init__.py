"""Negative log-likelihood against position on long texts, and its power law: see README.md."""
