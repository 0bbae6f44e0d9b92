"""How fast a sparse mixture of experts trains on this CPU, against a dense model and transformers' Mixtral."""
