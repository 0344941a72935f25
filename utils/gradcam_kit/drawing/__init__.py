"""Drawing of maps over images: colour, blend, compose."""
