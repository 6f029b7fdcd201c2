"""The frozen CLIP and what is learned on top of it."""
