"""What every mode shares: recipes, the one training loop, the zoo, data, checkpoints. Needs neither ray nor flwr."""
