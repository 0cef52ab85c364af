"""Weights in parts, one a process (fully sharded data parallel; Rajbhandari et al. 2020, section 5; Zhao et al. 2023).

Each process holds a piece of every tensor, a slice along its first dimension; the weights of a block are gathered when
the network comes to it and let go behind it, and their gradients are averaged in pieces. What acts on each element
alone, as Adam and the averages do, then acts on pieces. A block is an element of an nn.ModuleList or nn.Sequential of
the network; what is outside of them is one more.
"""

import copy
import signal
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..checkpoint import M, unwrapped
from ..model import EnergyModel, NoisyModel
from ..progress import Stopped

LISTS = (nn.ModuleList, nn.ModuleDict)


def require_shardable(model: NoisyModel, precision: str) -> None:
    """Raise ValueError, naming what is in the way, unless model can be trained in parts by these processes."""
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: F401
    except ImportError as error:
        raise ValueError(f"sharded needs torch 2.6 or newer, got {torch.__version__}") from error
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise ValueError("sharded needs two processes or more, as torchrun --nproc-per-node 2 starts them, got one")
    if precision == "float16":
        raise ValueError("precision must be float32 or bfloat16, which needs no scaled loss, if sharded, got 'float16'")
    if isinstance(model, EnergyModel):
        raise ValueError("model must not be an EnergyModel, whose score is a gradient by itself, to be sharded")
    if any(unwrapped(m) is not m for m in model.modules()):
        raise ValueError("net must not be compiled or wrapped, as by DataParallel, to be sharded")
    parameters, inside = list(model.named_parameters(remove_duplicate=False)), set(model.net.parameters())
    if len({p for _, p in parameters}) < len(parameters):
        raise ValueError("net must have no weight that two of its modules share to be sharded")
    for name, p in parameters:
        if p not in inside or not p.ndim or p.is_complex():
            raise ValueError(f"net must hold all weights, real and of a dimension or more, to be sharded, not {name!r}")


def _blocks(net: nn.Module) -> Iterable[nn.Module]:
    for child in net.children():
        if isinstance(net, (*LISTS, nn.Sequential)) and not isinstance(child, LISTS):
            yield child
        else:
            yield from _blocks(child)


def hollow(model: M) -> M:
    """A copy whose parameters take no memory."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


class Shards:
    """The processes that a training is spread over, and this one's device."""

    def __init__(self, device: torch.device) -> None:
        self.mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
        self.speaking = dist.new_group(backend="gloo", timeout=timedelta(days=7))  # on the CPU, which need not wait

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Make them those of the first process."""
        for v in tensors:
            dist.broadcast(v.detach(), 0, self.speaking)

    def spread(self, model: NoisyModel) -> None:
        """Leave of model's weights this process's part, on its device."""
        from torch.distributed.fsdp import fully_shard

        for p in model.parameters():
            p.data = p.data.contiguous()
        for v in model.buffers():
            v.data = v.data.to(self.mesh.device_type)
        model.net.register_forward_hook(lambda *called: called[-1].clone())  # no view, which FSDP warns of
        for block in [*_blocks(model.net), model.net]:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=self.mesh, reshard_after_forward=True)

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor that all have."""
        from torch.distributed.tensor import DTensor, Shard

        rank, pieces = self.mesh.get_local_rank(), whole.contiguous().chunk(self.mesh.size())
        mine = (pieces[rank] if rank < len(pieces) else whole[:0]).to(self.mesh.device_type, copy=True)
        shape, stride = whole.shape, whole.contiguous().stride()
        return DTensor.from_local(mine, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def agree(self, due: bool, asked: list[int]) -> bool:
        """Whether something is due in any process; if one was asked to end by a signal, all raise what it asks for."""
        said = torch.tensor([int(due), asked[0] if asked else 0])
        dist.all_reduce(said, dist.ReduceOp.MAX, self.speaking)
        if number := int(said[1]):
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)
        return bool(said[0])

    def alike(self, said: dict[str, Any]) -> None:
        """Raise ValueError, naming what differs, unless all processes say the same."""
        every: list[dict[str, Any]] = [said] * self.mesh.size()
        dist.all_gather_object(every, {k: repr(v) for k, v in said.items()}, self.speaking)
        for name in said:
            if len(found := sorted({one[name] for one in every})) > 1:
                raise ValueError(f"{name} must be alike in all processes of a sharded training, got {', '.join(found)}")


def local(v: Tensor) -> Tensor:
    """What of a tensor is here."""
    here: Tensor = v.to_local() if hasattr(v, "to_local") else v
    return here


def gathered(tensors: dict[str, Tensor], here: bool = True) -> dict[str, Tensor]:
    """Tensors in one piece, those that lie in parts on the CPU; all processes take part, and get nothing but `here`."""
    found = {}
    for name, v in sorted(tensors.items()):  # as a file that was read need not have told them
        whole: Any = v.full_tensor().cpu() if hasattr(v, "full_tensor") else v
        if here:
            found[name] = whole
    return found
