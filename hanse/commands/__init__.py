"""The verbs of the `hanse` command, one file per family; each imports its room only when it is called."""
