"""Proof by replay: what every power cut during a real machine's update would have left on its disk."""
