"""Reference images: everything that the lab boots, built from Debian packages and this repository."""
