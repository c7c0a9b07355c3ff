"""What a wheel has to do where it is installed: it has the CPU backend, learns, and reads its tickets."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from slt_kernels import EdgePopup, Freeze, backends, convert, load_ticket, save_ticket

assert backends.name_for(torch.device("cpu")) == "cpu", backends.describe("cpu")
model = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)), Freeze(0.3, 0.2))
x = torch.randn(2, 3, 8, 8)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
EdgePopup(model, 0.6).attach(optimizer)
model(x).square().sum().backward()
optimizer.step()
with tempfile.TemporaryDirectory() as folder:
    save_ticket(model, Path(folder) / "net.slt")
    again = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)), Freeze(0.3, 0.2))
    load_ticket(Path(folder) / "net.slt", again)
with torch.no_grad():
    assert torch.equal(again(x), model(x))
print(backends.describe("cpu"))
