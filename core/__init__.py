"""What every mode of Hanse shares: recipes, the one training loop, the zoo, data and checkpoints. Needs neither ray nor flwr."""
