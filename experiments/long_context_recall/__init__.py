"""Recall from long contexts: needles, RULER, InfiniteBench, MRCR, BABILong, for any checkpoint."""
