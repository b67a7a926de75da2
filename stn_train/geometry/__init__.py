"""Maps of the plane: coordinates and the sampler, matrices, splines, and what a network learns."""
