"""Real machines, images, faults to prove the updater against."""
