"""What is asked for: which maps a call means, and where one pass has to read for them."""
