"""Videos: every frame explained, drawn and scored, person by person."""
