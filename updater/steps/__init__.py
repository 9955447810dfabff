"""The verbs of an update, each durable at every step and safe to repeat."""
