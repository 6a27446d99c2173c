"""Backbones: from images to a feature map. A module a family, a factory a backbone."""
