"""Training the same members with PyTorch: one after another, and at once by `torch.func`."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from halfway.lab.benchmarks import peers
from halfway.lab.benchmarks.scale_work import LEARNING_RATE, Problem, Trainer, version


def trainers(problem: Problem) -> list[Trainer] | str:
    """Returns the loop over models and the program over stacked models; else why there are none.

    Args:
      problem: members and data.
    """
    loaded = peers.load("torch", "torch.func")
    if isinstance(loaded, str):
        return loaded
    torch = loaded[0]
    return [make(torch, problem) for make in (loop, stacked)]


def _parts(torch: Any, problem: Problem) -> tuple[list[Any], Any, Any, Any]:
    """Returns networks with our weights, images, labels and rows, on PyTorch's device."""
    device = peers.device(torch)
    images, labels = peers.to_torch(torch, problem.images, problem.labels)
    on_host = jax.device_get(problem.params)
    networks = [
        peers.network(torch, problem.work.config, jax.tree.map(lambda leaf: leaf[m], on_host))  # noqa: B023
        for m in range(problem.work.num_members)
    ]
    rows = torch.from_numpy(np.array(problem.rows)).long()
    return [n.to(device) for n in networks], *(a.to(device) for a in (images, labels, rows))


def loop(torch: Any, problem: Problem) -> Trainer:
    """Returns the plain loop, which trains one model after another with an optimizer for each.

    Args:
      torch: the module of PyTorch.
      problem: members and data.
    """
    networks, images, labels, rows = _parts(torch, problem)
    optimizers = [torch.optim.Adam(n.parameters(), lr=LEARNING_RATE) for n in networks]
    loss_fn = torch.nn.functional.cross_entropy

    def step(member: int, i: int) -> None:
        network, optimizer, batch = networks[member], optimizers[member], rows[member, i]
        optimizer.zero_grad()
        loss_fn(network(images[batch]), labels[batch]).backward()
        optimizer.step()

    def advance(first: int, last: int) -> float:
        work = ((member, i) for member in range(len(networks)) for i in range(first, last))
        return _seconds(torch, step, work)

    return Trainer(f"{version(torch)}, loop", advance, _losses(torch, networks, images, labels))


def _seconds(torch: Any, step: Callable[..., None], work: Iterable[tuple[int, ...]]) -> float:
    """Returns the seconds that steps take, on a CPU as their number times the median.

    Where other processes use the cores, PyTorch's threads wait for each other, and one step in ten
    takes a hundred times as long as the others. The median does not contain this.
    """
    seconds = []
    started = time.perf_counter()
    for arguments in work:
        before = time.perf_counter()
        step(*arguments)
        seconds.append(time.perf_counter() - before)
    if peers.device(torch).type == "cpu":
        return len(seconds) * statistics.median(seconds)
    peers.wait(torch)  # a GPU computes after the calls return
    return time.perf_counter() - started


def stacked(torch: Any, problem: Problem) -> Trainer:
    """Returns the program of `torch.func`: a gradient under `vmap`, and Adam over stacked tensors.

    Adam treats each number by itself, so that Adam over the stack is Adam for each member.

    Args:
      torch: the module of PyTorch.
      problem: members and data.
    """
    networks, images, labels, rows = _parts(torch, problem)
    params, buffers = torch.func.stack_module_state(networks)
    shape = copy.deepcopy(networks[0]).to("meta")
    optimizer = torch.optim.Adam(params.values(), lr=LEARNING_RATE)

    def logits(params: Any, x: Any) -> Any:
        return torch.func.functional_call(shape, params, (x,))

    def loss(params: Any, x: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits(params, x), labels)

    assert not buffers
    gradient = torch.func.vmap(torch.func.grad(loss))

    def step(i: int) -> None:
        batch = rows[:, i]
        values = {name: value.detach() for name, value in params.items()}
        for name, value in gradient(values, images[batch], labels[batch]).items():
            params[name].grad = value
        optimizer.step()

    def advance(first: int, last: int) -> float:
        return _seconds(torch, step, ((i,) for i in range(first, last)))

    def members() -> list[Callable[[Any], Any]]:
        def member(index: int) -> Callable[[Any], Any]:
            tensors = {name: value[index] for name, value in params.items()}
            return lambda x: logits(tensors, x)

        return [member(index) for index in range(len(networks))]

    return Trainer(
        f"{version(torch)}, func.vmap", advance, lambda: _losses(torch, members(), images, labels)()
    )


def _losses(torch: Any, networks: Any, images: Any, labels: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with torch.no_grad():
            values = [torch.nn.functional.cross_entropy(n(images), labels) for n in networks]
        return np.array([float(value) for value in values])

    return read
