"""Networks: backbones, heads, and the layers that they are made of."""
