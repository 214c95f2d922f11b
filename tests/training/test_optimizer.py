"""AdamW without torch's compiler: the same numbers, and nothing of the compiler loaded."""

import subprocess
import sys

import torch
from torch import Tensor, nn

from igpt.training.optimizer import AdamW

STEP = """
import sys
import torch
from igpt.model.config import ModelConfig
from igpt.model.transformer import ImageGPT
from igpt.training.step import Worker
from igpt.training.config import TrainingConfig

config = TrainingConfig.model_validate({"schedule": {"steps": 2}, "batch": {"global": 2}})
model = ImageGPT(ModelConfig(layers=1, width=8, heads=1, resolution=4, colors=8))
worker = Worker(model, config, world_size=1, device=torch.device("cpu"))
state = worker.optimizer.state_dict()
worker.optimizer.load_state_dict(state)
sum(parameter.sum() for parameter in model.parameters()).backward()
worker.optimizer.step()
print("torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.AdamW]) -> tuple[list[Tensor], dict[str, object]]:
    torch.manual_seed(0)
    network = nn.Linear(7, 5)
    optimizer = kind(network.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(3):
        network(torch.randn(11, 7)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    return [parameter.detach() for parameter in network.parameters()], optimizer.state_dict()


def test_it_computes_what_torch_computes_to_the_last_bit() -> None:
    (ours, state), (theirs, other) = trained(AdamW), trained(torch.optim.AdamW)
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    torch.testing.assert_close(state, other, rtol=0, atol=0)


def test_a_step_that_compiles_nothing_loads_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
