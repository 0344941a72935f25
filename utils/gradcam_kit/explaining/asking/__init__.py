"""Read requests: which maps a call means, and where a pass must read the tower for them."""
