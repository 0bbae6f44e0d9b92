"""A twin head on a trained network for rare classes, after arXiv 2102.07975: see README.md."""
