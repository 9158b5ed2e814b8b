"""Where the cells of tensors lie in the image, and how operators move them."""
