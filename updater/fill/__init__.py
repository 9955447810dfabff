"""Filling a slot from whatever costs least: a delta, blocks that are held already, frames, or the image as it is."""
