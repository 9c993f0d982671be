"""What changes a reply on its way to the server; the union is the registry: a new transform is a file and a name here.

Each class holds both halves of one change (`federated.exchange.Transform`), and says at which `stage` of the way it
belongs: 0 bounds or reweighs the vectors, 1 selects some of their numbers, 2 writes numbers with fewer bits. Noise for
privacy belongs to stage 0, masks of a secure sum to a stage 3. `federated.transforms.chain` puts them together.
"""

from federated.transforms.clipping import Clipping
from federated.transforms.int8 import Int8
from federated.transforms.top_k import TopK
from federated.transforms.weighting import Weighting

TransformConfig = Clipping | Weighting | TopK | Int8

__all__ = ["Clipping", "Int8", "TopK", "TransformConfig", "Weighting"]
