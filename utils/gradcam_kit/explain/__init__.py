"""What an explanation is, and the one pass from which it follows."""
