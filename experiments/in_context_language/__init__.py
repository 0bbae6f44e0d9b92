"""Learning a language from its grammar book, in context: made-up languages, and real Kalamang and Lojban."""
