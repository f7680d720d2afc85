"""What is given to compiled code by its address, and what is not."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, prune

import swift_sd
from swift_sd.model.plain_tensors import address, is_plain, is_plain_linear
from swift_sd.native.compiler import NoKernelsError


class Packed(torch.Tensor):
    """Says that it is of bfloat16, as quantised weights do."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.bfloat16)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        def whole(one):
            return one.codes.to(torch.bfloat16) if isinstance(one, cls) else one

        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        args, kwargs = torch.utils._pytree.tree_map(whole, (args, kwargs or {}))
        return function(*args, **kwargs)


def packed():
    return Packed(torch.randint(-9, 9, (64, 64), dtype=torch.int8))


def whole():
    return torch.randn(64, 64).to(torch.bfloat16)


def freed():
    tensor = whole()
    tensor.untyped_storage().resize_(0)
    return tensor


def fake():
    with FakeTensorMode():
        return torch.empty(64, 64, dtype=torch.bfloat16)


REFUSED = {
    "nothing": lambda: None,
    "packed": packed,
    "packed parameter": lambda: nn.Parameter(packed(), requires_grad=False),
    "subclass": lambda: whole().as_subclass(type("Other", (torch.Tensor,), {})),
    "fake": fake,
    "meta": lambda: whole().to("meta"),
    "sparse": lambda: whole().to_sparse(),
    "compressed": lambda: whole().to_sparse_csr(),
    "oneDNN's": lambda: whole().to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([whole()]),
    "freed": freed,
    "negated in view": lambda: torch._neg_view(whole()),
    "another type": lambda: whole().float(),
}


@pytest.mark.filterwarnings("ignore:Sparse|.*prototype:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_lie_in_memory_as_it_says_has_no_address(kind):
    tensor = REFUSED[kind]()
    assert not is_plain(tensor, torch.bfloat16)
    with pytest.raises(NoKernelsError, match="not a plain tensor"):
        address(tensor, torch.bfloat16)


@pytest.mark.parametrize("kind", [whole, lambda: nn.Parameter(whole()), lambda: whole()[5:]])
def test_plain_tensors_have_one(kind):
    tensor = kind()
    assert address(tensor, torch.bfloat16) == tensor.data_ptr()


def test_what_lies_in_pieces_is_for_those_who_ask():
    tensor = whole().t()
    with pytest.raises(NoKernelsError, match="in one piece"):
        address(tensor, torch.bfloat16)
    assert address(tensor, torch.bfloat16, contiguous=False) == tensor.data_ptr()


def test_there_is_no_other_way_to_compiled_code():
    source = Path(swift_sd.__file__).parent
    users = {path.name for path in source.rglob("*.py") if "data_ptr(" in path.read_text("utf-8")}
    assert users == {"plain_tensors.py", "snapshot.py"}  # which compares addresses


def linear():
    return nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)


def weight_packed():
    layer = linear()
    layer.weight = nn.Parameter(packed(), requires_grad=False)
    return layer


def pruned():
    layer = linear()
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def hooked():
    layer = linear()
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    "kind",
    [
        weight_packed,
        pruned,
        hooked,
        lambda: parametrizations.weight_norm(linear()),
        lambda: type("Other", (nn.Linear,), {})(64, 64),
        lambda: nn.Sequential(linear()),
    ],
    ids=["packed", "pruned", "hooked", "parametrized", "subclass", "wrapped"],
)
def test_linear_layers_of_another_kind_are_known(kind):
    assert is_plain_linear(linear())
    assert not is_plain_linear(kind())
