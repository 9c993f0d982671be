"""Cross entropy with label smoothing (arXiv:1512.00567) that may differ from example to example."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a target that is not scored, as in torch's cross_entropy


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float | Tensor) -> Tensor:
    """Losses [B] of logits [B, C] against classes [B] or soft classes [B, C]; smoothing is one number, or [B].

    A share `smoothing` of each target is spread evenly over the classes. Targets of -100 lose nothing.
    """
    logits = logits.float()
    if not isinstance(smoothing, Tensor):
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    plain = F.cross_entropy(logits, targets, reduction="none")
    even = -F.log_softmax(logits, dim=1).mean(dim=1)
    if targets.dim() == 1:
        even = even * (targets != IGNORED)
    return plain + smoothing * (even - plain)
