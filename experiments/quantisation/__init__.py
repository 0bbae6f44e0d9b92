"""What packing weights to 8 and 4 bits costs in quality, and what it saves on disk and in memory: see README.md."""
