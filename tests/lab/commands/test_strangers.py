"""Three strangers with models of their own: a number, a page of transfer and a landscape each.

What a stranger writes beside the network itself is at most ten lines, and two commands.
"""

import pytest
from support import commands
from support.launcher import FOLDERS

LINEN = """
import flax.linen as nn

class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))

module = Network()
params = module.init(jax.random.key(0), images[:1])["params"]
apply_fn = lambda params, x: module.apply({"params": params}, x)
"""
NNX = """
from flax import nnx

class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(2, 16, rngs=rngs, decode=False)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        patches = x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        x = self.embed(patches)
        return self.head((x + self.attend(self.norm(x))).mean(1))

definition, params = nnx.split(Transformer(nnx.Rngs(0)))
apply_fn = lambda params, x: nnx.merge(definition, params)(x)
"""
IN_JAX = """
import jax
import jax.numpy as jnp
import numpy as np
from halfway import data, losses, storage, trees

images, labels = (jnp.asarray(array) for array in data.load("digits", "{folder}").train)
{network}
def loss_fn(params):
    return losses.cross_entropy(apply_fn(params, images[:200]), labels[:200]).mean()

@jax.jit
def train(params):
    step = lambda p, _: (jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss_fn)(p)), None)
    return jax.lax.scan(step, params, length=60)[0]

trained = train(params)
"""
STRANGER_IN_JAX = """
leaves, structure = jax.tree.flatten(trained)
np.savez("net.npz", **{f"{i:03d}": leaf for i, leaf in enumerate(leaves)})
loss = lambda tensors: loss_fn(jax.tree.unflatten(structure, [tensors[k] for k in sorted(tensors)]))
load = lambda: lambda x: apply_fn(trained, x)
models = lambda: {"trained": load(), "as it began": lambda x: apply_fn(params, x)}
"""
TORCH = """
import numpy as np
import torch
from halfway import data, interop

images, labels = data.load("digits", "{folder}").train

class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.inner = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.norm(self.inner(x))).flatten(1))

torch.manual_seed(0)
net, began = Residual(), Residual().eval()
x = torch.tensor(images[:200]).permute(0, 3, 1, 2)
y = torch.tensor(labels[:200].astype(np.int64))
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(60):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
"""
STRANGER_IN_TORCH = """
load = lambda: interop.torch_logits(net.eval())
models = lambda: {"trained": load(), "as it began": interop.torch_logits(began)}
loss, parameters = interop.torch_loss(net.eval(), images[:100], labels[:100])
np.savez("net.npz", **parameters)
"""


@pytest.mark.parametrize("stranger", ["linen", "nnx", "torch"])
def test_a_stranger_gets_a_number_a_page_of_transfer_and_a_landscape(
    stranger, tmp_path, monkeypatch
):
    if stranger == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    their_lines = STRANGER_IN_TORCH if stranger == "torch" else STRANGER_IN_JAX
    assert len(their_lines.strip().splitlines()) <= 10
    data_dir = FOLDERS[1].partition("=")[2]
    if stranger == "torch":
        text = TORCH.format(folder=data_dir)
    else:
        network = {"linen": LINEN, "nnx": NNX}[stranger]
        text = IN_JAX.replace("{network}", network).replace("{folder}", data_dir)
    name = f"network_of_{stranger}"
    (tmp_path / f"{name}.py").write_text(text + their_lines)
    monkeypatch.syspath_prepend(tmp_path)

    few = ("--data=digits", "--num_examples=30", "--attacks=pgd", *FOLDERS)
    number = commands.call(
        tmp_path, "evaluate", f"--model={name}:load", "--threat=linf:0.1", "--nocurves", *few
    )
    assert number.code == 0, number
    assert (tmp_path / "runs" / "evaluate" / "evaluation.html").is_file()
    crossed = commands.call(
        tmp_path, "transfer", f"--surrogates={name}:models", "--epsilon=0.1", *few
    )
    assert crossed.code == 0, crossed
    page = (tmp_path / "runs" / "transfer" / "transfer.html").read_text()
    assert "as it began" in page
    sizes = landscape_sizes()
    monkeypatch.setattr("halfway.lab.commands.landscape.LandscapeSizes", lambda: sizes)
    drawn = commands.call(
        tmp_path, "landscape", "--params=net.npz", f"--loss={name}:loss", FOLDERS[0]
    )
    assert drawn.code == 0, drawn
    page = (tmp_path / "runs" / "landscape" / "landscape" / "landscape.html").read_text()
    assert "net: the loss is" in page and "Largest eigenvalue" in page


def landscape_sizes():
    """As little as can be drawn."""
    from halfway.lab.config.settings import LandscapeSizes

    return LandscapeSizes(num_points=3, grid=3, num_eigenvalues=1, num_steps=4, num_samples=2)
