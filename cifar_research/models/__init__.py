"""Networks: backbones, heads and layers."""
