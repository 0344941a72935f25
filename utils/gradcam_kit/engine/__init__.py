"""Maps from activations, gradients and attention: towers, layers, targets, methods. Needs torch alone."""
