"""What a step costs before it is run: parameters, FLOPs and memory, counted on tensors without numbers.

FLOPs are those of matrix products and convolutions, 2 per multiply-add. The backward pass counts as 2 forward passes
(one for the inputs' gradients, one for the weights'), the usual rule for MFU (arXiv 2204.02311, appendix B).
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from core.errors import ResourceError
from core.task import Batch

MOST_BYTES = 1 << 50  # of weights: a thousand machines do not have it, and torch counts bytes in 63 bits
# How Linux says what a container may use: its second and its first version of control groups.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

if TYPE_CHECKING:  # only names: an estimate needs neither the data room nor the zoo
    from core.data.spec import Spec
    from core.optim import OptimizerConfig
    from core.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """Costs of one optimizer step of one process. `activations_bytes` is what the forward pass of one micro-batch keeps
    for the backward pass, without compilation or scratch space of kernels."""

    parameters: int
    trainable: int
    flops: float
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @property
    def memory_bytes(self) -> int:
        """The sum of the four, a lower bound of the peak."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


def step_flops(recipe: "Recipe", spec: "Spec") -> float:
    """FLOPs of one optimizer step over the whole global batch: 3 forward passes."""
    forward = _forward_flops(recipe.outline(spec), example_batch(spec, 2))  # BatchNorm refuses 1 row
    return 3.0 * forward * recipe.train.batch_size / 2


def require_memory(recipe: "Recipe", spec: "Spec") -> None:
    """Raises ResourceError, before anything is allocated, if the weights alone do not fit into the machine's memory."""
    network = recipe.outline(spec).network
    needed, there = _weights_bytes(network), machine_bytes()
    if needed > there:
        name, largest = max(network.named_parameters(), key=lambda item: item[1].numel())
        raise ResourceError(
            f"model: its {sum(p.numel() for p in network.parameters()):,} parameters take {needed / 1e9:,.1f} GB, and "
            f"this machine has {there / 1e9:,.1f} GB of memory; make the model smaller (the largest tensor, {name}, is "
            f"{list(largest.shape)})"
        )


def machine_bytes() -> int:
    """The memory of this machine, or the part of it that this process may use."""
    import psutil

    bounds = [int(psutil.virtual_memory().total)]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        bounds.append(address_space)
    for file in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # not in a container, or "max": without a limit
            bounds.append(int(Path(file).read_text(encoding="ascii")))
    return min(bounds)


def estimate(
    task: nn.Module, batch: Batch, optimizer: "OptimizerConfig", batch_size: int, precision: str = "fp32"
) -> Estimate:
    """The costs of a task (batch -> losses, weights) whose micro-batches have the size of `batch` (any device).

    Under bf16 and fp16 the activations count 2 bytes each: autocast keeps a few of them, such as losses, in fp32.
    """
    parameters = list(task.parameters())
    if (weights := _weights_bytes(task)) > MOST_BYTES:
        raise ResourceError(f"model: its weights take {weights:.3g} bytes, and no machine has that; make it smaller")
    with FakeTensorMode(allow_non_fake_inputs=True):
        activations = _activations_bytes(task, batch, _kept_as(precision), torch.device("cpu"))
    return Estimate(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        flops=3.0 * _forward_flops(task, batch) * batch_size / len(batch["inputs"]),
        weights_bytes=_weights_bytes(task),
        gradients_bytes=_gradients_bytes(task),
        optimizer_bytes=_optimizer_bytes(task, optimizer, torch.device("meta")),
        activations_bytes=activations,
    )


def training_bytes(
    task: nn.Module, batch: Batch, optimizer: "OptimizerConfig", precision: str, device: torch.device
) -> int:
    """`Estimate.memory_bytes`, from a forward pass and an optimizer's step on zeros that are really run on the device:
    what is to train there anyway takes milliseconds for it; without numbers torch's compiler is imported, a second."""
    activations = _activations_bytes(task, batch, _kept_as(precision), device)
    return _weights_bytes(task) + _gradients_bytes(task) + _optimizer_bytes(task, optimizer, device) + activations


def example_batch(spec: "Spec", size: int) -> Batch:
    """A batch of the right shapes on the meta device: no numbers, no memory."""
    kind = torch.int64 if spec.kind == "text" else torch.float32
    inputs = torch.empty(size, *spec.shape, dtype=kind, device="meta")
    if spec.target == "real":
        targets = torch.empty(size, spec.outputs, device="meta")
    else:
        targets = torch.empty(size, *(spec.shape if spec.target == "token" else ()), dtype=torch.int64, device="meta")
    weight, key = torch.empty(size, device="meta"), torch.empty(size, dtype=torch.int64, device="meta")
    return {"inputs": inputs, "targets": targets, "weight": weight, "key": key}


def _forward_flops(task: nn.Module, batch: Batch) -> int:
    """Of one forward pass in training: on meta tensors everything falls apart into products, which count right."""
    with FlopCounterMode(display=False) as counter:
        _forward(task, *_shadow(task, batch, torch.float32, torch.device("meta")))
    flops: int = counter.get_total_flops()
    return flops


def _activations_bytes(task: nn.Module, batch: Batch, dtype: torch.dtype, device: torch.device) -> int:
    """What one forward pass in training keeps for the backward pass. Not on meta tensors: on a CPU's, fake or not,
    attention and recurrence stay fused, which keep what they really keep: no [T, T] matrix for each head."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # views share one
        kept.setdefault(storage._cdata, storage)
        return tensor

    weights, inputs = _shadow(task, batch, dtype, device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(task, weights, inputs)
    given = {t.untyped_storage()._cdata for t in [*weights.values(), *inputs.values()]}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in given)


def _kept_as(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def _shadow(task: nn.Module, batch: Batch, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Tensor], Batch]:
    """Parameters with buffers, and batch: their shapes filled with zeros, floats as `dtype`."""

    def shadow(t: Tensor) -> Tensor:
        kind = dtype if t.is_floating_point() else t.dtype
        return torch.zeros(t.shape, dtype=kind, device=device, requires_grad=t.requires_grad)

    weights = {name: shadow(t) for name, t in [*task.named_parameters(), *task.named_buffers()]}
    return weights, {name: shadow(t) for name, t in batch.items()}


def _forward(task: nn.Module, weights: dict[str, Tensor], inputs: Batch) -> None:
    with _training(task):
        torch.func.functional_call(task, weights, (inputs,), tie_weights=True)


@contextmanager
def _training(task: nn.Module) -> Iterator[None]:
    was_training = task.training
    task.train()
    try:
        yield
    finally:
        task.train(was_training)


def _weights_bytes(task: nn.Module) -> int:
    return sum(_size(t) for t in [*task.parameters(), *task.buffers()])


def _gradients_bytes(task: nn.Module) -> int:
    return sum(_size(p) for p in task.parameters() if p.requires_grad)


def _optimizer_bytes(task: nn.Module, optimizer: "OptimizerConfig", device: torch.device) -> int:
    """The state that one step leaves."""
    named = [
        (n, nn.Parameter(torch.zeros_like(p, device=device))) for n, p in task.named_parameters() if p.requires_grad
    ]
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    built = optimizer.build(named)
    built.step()
    entries: list[Any] = [value for state in built.state.values() for value in state.values()]
    return sum(_size(value) for value in entries if isinstance(value, Tensor) and value.ndim > 0)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# Peak dense TFLOP/s of a GPU: (bf16 and fp16 with fp32 accumulation, tf32, fp32), by a part of the name that CUDA
# reports; the first that fits counts. From NVIDIA's data sheets and architecture white papers, whose tensor core
# numbers "with sparsity" are halved here.
_PEAK_TFLOPS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("GB200", (2500.0, 1250.0, 80.0)),  # GB200 NVL72 data sheet, one GPU
    ("B200", (2250.0, 1125.0, 75.0)),  # HGX B200 data sheet, one of 8 GPUs
    ("H200 NVL", (835.5, 417.5, 60.0)),  # H200 data sheet
    ("H200", (989.5, 494.5, 67.0)),  # H200 data sheet, SXM
    ("GH200", (989.5, 494.5, 67.0)),  # GH200 data sheet
    ("H100 NVL", (835.5, 417.5, 60.0)),  # H100 data sheet
    ("H100 PCIe", (756.5, 378.0, 51.0)),  # H100 data sheet
    ("H100", (989.5, 494.5, 67.0)),  # H100 data sheet, SXM
    ("A100", (312.0, 156.0, 19.5)),  # A100 data sheet
    ("A10G", (70.0, 35.0, 31.2)),  # A10G data sheet
    ("A10", (125.0, 62.5, 31.2)),  # A10 data sheet
    ("A40", (149.7, 74.8, 37.4)),  # A40 data sheet
    ("RTX A6000", (154.8, 77.4, 38.7)),  # GA102 white paper, appendix
    ("L40S", (362.0, 183.0, 91.6)),  # L40S data sheet
    ("L40", (181.0, 90.5, 90.5)),  # L40 data sheet
    ("L4", (121.0, 60.0, 30.3)),  # L4 data sheet
    ("RTX 5090", (209.5, 104.8, 104.8)),  # RTX Blackwell white paper, appendix
    ("RTX 4090", (165.2, 82.6, 82.6)),  # Ada white paper, appendix
    ("RTX 3090", (71.0, 35.6, 35.6)),  # GA102 white paper, appendix
)
_OTHER_CHIPS = {"Laptop", "D", "Ti", "MIG"}  # words that make a name that of another chip, or of a part of one


def peak_flops(device: torch.device, precision: str = "fp32") -> float | None:
    """The peak FLOP/s of this device at fp32, bf16 or fp16; None for a CPU and for GPUs that are not in the table.

    fp32 means TF32 where `torch.set_float32_matmul_precision` allows it.
    """
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        precision = "tf32"
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(name: str, precision: str) -> float | None:
    """The peak FLOP/s of a GPU by the name that CUDA gives it, at fp32, tf32, bf16 or fp16."""
    words = f" {name} "
    if _OTHER_CHIPS & set(name.split()):
        return None
    column = {"bf16": 0, "fp16": 0, "tf32": 1, "fp32": 2}[precision]
    for part, tflops in _PEAK_TFLOPS:
        if any(f" {part}{end}" in words for end in (" ", "-")):
            return tflops[column] * 1e12
    return None
