"""Compare patches with those of real images, and exchange them."""
