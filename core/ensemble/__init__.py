"""Many members of one recipe: which ones they are, and what all of them say together."""
