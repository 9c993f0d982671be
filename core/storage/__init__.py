"""What lies on the disk: atomic files, checkpoints, run and model directories. Nothing is ever unpickled."""
