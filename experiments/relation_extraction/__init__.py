"""Relations between entities from distantly supervised text, after PARE and DiS-ReX: see README.md."""
