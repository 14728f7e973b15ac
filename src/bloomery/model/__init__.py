"""One decoder, written for one device."""
