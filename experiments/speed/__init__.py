"""How fast the zoo is on this CPU against transformers, and how a local layer grows with the length: see README.md."""
