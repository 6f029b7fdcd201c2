"""The frozen CLIP and the learned parts on top of it."""
