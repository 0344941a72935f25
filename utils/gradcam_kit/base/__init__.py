"""The lowest room. It needs only the standard library, except `typed`, which needs msgspec."""
