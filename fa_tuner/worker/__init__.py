"""Takes the studies that the service was asked for and tunes them, one at a time, on one device."""
