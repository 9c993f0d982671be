"""What every mode shares: recipes, the one training loop, the zoo, data, checkpoints. Needs neither ray nor flwr."""

import os

# OpenMP's threads spin while they wait, for 200 ms: beside another busy process each of them waits for one that
# spins, and small steps took 6 to 60 times as long. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
