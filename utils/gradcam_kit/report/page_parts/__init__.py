"""The template's values for each part of the page."""
