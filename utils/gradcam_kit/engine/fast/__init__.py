"""What makes a pass cost only what its arithmetic needs."""
