"""Maps drawn over images: colour, blend, compose. No file is written here but by the caller's own wish."""
