"""Maps from activations and gradients: methods, layers, targets."""
