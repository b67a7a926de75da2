"""The networks: spatial transformers, backbones, and how they are put together."""
