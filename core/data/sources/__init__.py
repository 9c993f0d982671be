"""Files as they lie, bundled or the user's: found, fingerprinted and read into plain arrays. Nothing is fitted here."""
