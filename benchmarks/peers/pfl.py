"""Peer: pfl on PyTorch, FedAvg by its own loop in one process.

--shortcuts: the softmax scores real tokens only, and a batch is cut to its longest row. --lstm:
torch's own LSTM layer and a projection, of as many parameters, in place of the CIFG cell written
out.
"""

import math

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional

from benchmarks.peers import common


class Cifg(nn.Module):
    """Hidden states [time, batch, embedding] of inputs of the same shape.

    Input and forget gate coupled, recurrent projection.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        self.names = ("input_kernel", "recurrent_kernel", "cell_bias", "projection")
        for name in self.names:
            self.register_parameter(name, nn.Parameter(torch.tensor(weights[name])))

    def forward(self, x):
        """float32 [time, batch, embedding] -> the same."""
        hidden, cell = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1], self.projection.shape[1])
        recurrent, projection = (
            self.recurrent_kernel.t().contiguous(),
            self.projection.t().contiguous(),
        )
        states = []
        for gates in functional.linear(x, self.input_kernel, self.cell_bias).unbind(0):
            i, o, g = torch.addmm(gates, hidden, recurrent).chunk(3, 1)
            cell = torch.lerp(cell, g.tanh(), i.sigmoid())
            hidden = (o.sigmoid() * cell.tanh()) @ projection
            states.append(hidden)
        return torch.stack(states)  # [time, batch, embedding]


class Lstm(nn.Module):
    """torch's LSTM with as many units as give the CIFG layer's parameters.

    Without a recurrent projection, which oneDNN cannot do.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        width = weights["projection"].shape[0]
        parameters = sum(
            weights[name].size for name in weights if name not in ("embedding", "output_bias")
        )
        linear = 5 * width + 8  # parameters are 4 units^2 + linear * units: torch keeps two biases
        units = round((math.sqrt(linear**2 + 16 * parameters) - linear) / 8)
        self.layer, self.projection = nn.LSTM(width, units), nn.Linear(units, width, bias=False)

    def forward(self, x):
        """float32 [time, batch, embedding] -> the same."""
        return self.projection(self.layer(x)[0])


class NextWord(nn.Module):
    """The network of `model/network.py` as pfl wants a model: its loss, and what it measures."""

    def __init__(self, weights: dict[str, np.ndarray], lstm: bool, shortcuts: bool):
        super().__init__()
        self.shortcuts = shortcuts
        self.embedding = nn.Parameter(torch.tensor(weights["embedding"]))
        self.output_bias = nn.Parameter(torch.tensor(weights["output_bias"]))
        self.recurrent = Lstm(weights) if lstm else Cifg(weights)

    def loss(self, rows):
        """Mean cross-entropy of the targets of rows, int64 [batch, length + 1]."""
        if self.shortcuts:
            rows = rows[:, : int((rows != 0).sum(1).max())]
        columns = rows.t()
        x = functional.embedding(columns[:-1], self.embedding) * math.sqrt(self.embedding.shape[1])
        hidden, targets = self.recurrent(x).flatten(0, 1), columns[1:].flatten()
        if self.shortcuts:
            real = targets.nonzero()[:, 0]
            hidden, targets = hidden[real], targets[real]
        return functional.cross_entropy(
            functional.linear(hidden, self.embedding, self.output_bias), targets, ignore_index=0
        )

    def metrics(self, rows):
        """pfl's hook: nothing is measured on the way."""
        return {}

    @torch.no_grad()
    def held_out_loss(self, rows: np.ndarray) -> float:
        """Mean loss over all targets of rows; the mean of a chunk counts by its targets."""
        chunks = [
            torch.from_numpy(rows[start : start + 64]).long() for start in range(0, len(rows), 64)
        ]
        targets = [int((chunk[:, 1:] != 0).sum()) for chunk in chunks]
        return float(np.average([float(self.loss(chunk)) for chunk in chunks], weights=targets))

    def weights(self) -> dict[str, np.ndarray]:
        """As `model/network.py` names them."""
        return {
            name.removeprefix("recurrent."): array.detach().numpy()
            for name, array in self.named_parameters()
        }


class Mark(TrainingProcessCallback):
    """Marks the end of each round."""

    def __init__(self, marks: common.Marks):
        self.marks = marks

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """pfl's hook: go on, with nothing to report."""
        self.marks.mark()
        return False, Metrics()


def main() -> None:
    """Do the work, and write when rounds ended and what came out."""
    asked = common.arguments(lstm=False, shortcuts=False)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    work, marks = common.read(asked.work), common.Marks()
    network = NextWord(work.weights, asked.lstm, asked.shortcuts)
    taking_part = iter(range(work.rounds * work.cohort))
    data = FederatedDataset(
        lambda i: Dataset([torch.from_numpy(work.participation(i)).long()], user_id=str(i)),
        lambda: next(taking_part),
    )
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    rounds = NNAlgorithmParams(
        work.rounds,
        evaluation_frequency=work.rounds,
        train_cohort_size=work.cohort,
        val_cohort_size=0,
    )
    local = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=work.learning_rate, local_batch_size=work.batch_size
    )
    backend = SimulatedBackend(data, data, [WeightByDatapoints()])
    marks.mark()
    FederatedAveraging().run(
        rounds, backend, model, local, callbacks=[Mark(marks)], send_metrics_to_platform=False
    )
    if asked.lstm:
        common.finish(
            asked.result,
            marks,
            ["pfl", "torch"],
            held_out_loss=network.held_out_loss(work.held_out),
        )
    else:
        common.finish(asked.result, marks, ["pfl", "torch"], network.weights())


if __name__ == "__main__":
    main()
