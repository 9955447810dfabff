"""Release engineering: keys, the signed repository, image builds."""
