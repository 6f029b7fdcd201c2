"""`lite`: the built-in CLIP model, which needs no hub; see docs/lite.md."""
