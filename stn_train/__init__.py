"""Spatial Transformer Networks on distorted MNIST, after Jaderberg et al. 2015."""
