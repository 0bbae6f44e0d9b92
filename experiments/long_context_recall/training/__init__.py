"""A small model that finds needles: its documents, curriculum, training, ablations and their study."""
