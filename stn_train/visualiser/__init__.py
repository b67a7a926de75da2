"""The visualiser: pictures of what a model does to its images, and of how its training went."""
