"""Backbones: from images to a feature map; one module a family."""
