"""The strategies. The union is the registry: a new one is a file and a name here."""

from federated.strategies.ditto import Ditto
from federated.strategies.fedavg import FedAvg
from federated.strategies.fedavgm import FedAvgM
from federated.strategies.fedbn import FedBN
from federated.strategies.fedbuff import FedBuff
from federated.strategies.fednova import FedNova
from federated.strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from federated.strategies.fedprox import FedProx
from federated.strategies.norm_bounding import NormBounding
from federated.strategies.qfedavg import QFedAvg
from federated.strategies.robust.bulyan import Bulyan
from federated.strategies.robust.centered_clipping import CenteredClipping
from federated.strategies.robust.geometric_median import GeometricMedian
from federated.strategies.robust.krum import Krum, MultiKrum
from federated.strategies.robust.median import Median
from federated.strategies.robust.trimmed_mean import TrimmedMean
from federated.strategies.scaffold import Scaffold
from federated.strategies.theirs import Theirs

StrategyConfig = (
    FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi | FedProx | Scaffold | FedNova | QFedAvg | FedBN | Ditto | FedBuff
    | Median | TrimmedMean | Krum | MultiKrum | Bulyan | GeometricMedian | CenteredClipping | NormBounding | Theirs
)  # fmt: skip

__all__ = [
    "Bulyan", "CenteredClipping", "Ditto", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedBN", "FedBuff", "FedNova",
    "FedProx", "FedYogi", "GeometricMedian", "Krum", "Median", "MultiKrum", "NormBounding", "QFedAvg", "Scaffold",
    "StrategyConfig", "Theirs", "TrimmedMean",
]  # fmt: skip
