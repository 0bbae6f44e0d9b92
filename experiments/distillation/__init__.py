"""Small models that learn from a teacher's probabilities, against the same models on the same tokens: see README.md."""
