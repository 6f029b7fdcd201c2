"""Methods side by side: the same images, splits, seeds and budget for all."""
