"""Exports of a finished run to other formats."""
