"""The lab: real firmware, loader, kernel and systemd in QEMU, watched from outside the guest."""
