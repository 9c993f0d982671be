"""The strategies. The union is the registry: a new one is a file and a name here."""

from federated.strategies.bulyan import Bulyan
from federated.strategies.centered_clipping import CenteredClipping
from federated.strategies.ditto import Ditto
from federated.strategies.fedavg import FedAvg
from federated.strategies.fedavgm import FedAvgM
from federated.strategies.fedbn import FedBN
from federated.strategies.fedbuff import FedBuff
from federated.strategies.fednova import FedNova
from federated.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from federated.strategies.fedprox import FedProx
from federated.strategies.geometric_median import GeometricMedian
from federated.strategies.krum import Krum, MultiKrum
from federated.strategies.median import Median
from federated.strategies.norm_bounding import NormBounding
from federated.strategies.qfedavg import QFedAvg
from federated.strategies.scaffold import Scaffold
from federated.strategies.trimmed_mean import TrimmedMean

StrategyConfig = (
    FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi | FedProx | Scaffold | FedNova | QFedAvg | FedBN | Ditto | FedBuff
    | Median | TrimmedMean | Krum | MultiKrum | Bulyan | GeometricMedian | CenteredClipping | NormBounding
)  # fmt: skip

__all__ = [
    "Bulyan", "CenteredClipping", "Ditto", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedBN", "FedBuff", "FedNova",
    "FedProx", "FedYogi", "GeometricMedian", "Krum", "Median", "MultiKrum", "NormBounding", "QFedAvg", "Scaffold",
    "StrategyConfig", "TrimmedMean",
]  # fmt: skip
