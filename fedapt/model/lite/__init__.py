"""`lite`: the CLIP model that needs no hub, see docs/lite.md."""
