"""What a model returns, beyond what `engine.heads` reads of it."""
