"""A trained network as a live page: draw, distort, and see what it does."""
