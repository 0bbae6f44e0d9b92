"""Small models that find a word in a long video or a keyword in long speech: material, curriculum, training, study."""
