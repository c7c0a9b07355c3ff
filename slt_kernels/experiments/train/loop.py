"""The search for a ticket: trains the scores of a supermask network."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ... import bits
from ...bernoulli import BernoulliMasks
from ...edge_popup import EdgePopup
from ...nn import SupermaskLayer
from ...nn.network import supermask_layers
from ...nn.sharded_scores import is_dtensor, local
from ..data import UNANSWERED, Batch, Dataset, Loader, Part
from . import processes
from .checkpoint_checks import check
from .run_folder import Interrupted, Run, StopSignals
from .settings import Search

SHARDS = (None, "fsdp2")
_DTYPES = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}


def search(
    model: nn.Module,
    data: Dataset,
    settings: Search,
    on_epoch: Callable[[int, float, float], None] | None = None,
    *,
    seed: int = 0,
    run: Run | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    shard: str | None = None,
) -> list[dict[str, Any]]:
    """Searches for a ticket in a supermask model, in place, starting from initial scores; or trains a dense model.

    Under ``torch.distributed`` each process takes its share of every batch (`processes`). Randomness is a function of
    ``seed`` and of the epoch or step, so a search with a `Run` that was stopped at any step resumes to the same scores,
    bit for bit on a CPU.

    Args:
        model: a network of supermask layers on the device to train on. Afterwards it is the ticket: of the last or the
            best epoch (``pick``), and with ``ema`` of the averaged scores.
        data: the data set; the search trains on its training part.
        settings: see `Search`.
        on_epoch: called after each epoch with its number (from 1), mean loss, and validation accuracy.
        seed: for the order of examples, mixup, and dropout.
        run: the folder for checkpoints and logs. Without it nothing is written, and signals are not handled.
        on_step: called after each step with the epoch, the step (both from 1), and the steps in an epoch.
        shard: None (default) if each process holds all scores; "fsdp2" to divide the scores, their gradients and the
            optimizer's state among the processes of ``torch.distributed``, which may be one. The model stays sharded.
            Then ``run`` has to be a sharded one.

    Returns:
        One row per epoch: epoch, steps so far, learning rate, mean loss, validation accuracy, fraction kept, and test
        accuracy if ``test_each_epoch``.

    Raises:
        ValueError: a sparsity that the model's freezing does not allow; mixup or cutmix of data that are not images;
            another ``shard``, or one of sampled masks, without a process group or with a ``run`` of the other kind; a
            folder that holds another search or in which one is running.
        Interrupted: the search was stopped by a signal, after writing a checkpoint.
        RuntimeError: processes with different masks or parameters; or a diverged search, detected at the end of an
            epoch or before a checkpoint.
    """
    for name in ("mixup", "cutmix"):
        if getattr(settings, name) and data.kind != "images":
            raise ValueError(f"{name}={getattr(settings, name)}: expected 0 for {data.kind}: only images can be mixed")
    check_shard(shard, settings)
    if shard is not None and not torch.distributed.is_initialized():
        raise ValueError(f"shard={shard!r}: expected a process group (torch.distributed.init_process_group)")
    if run is not None and run.sharded != (shard is not None):
        raise ValueError(f"run: sharded={run.sharded}: expected {not run.sharded} for shard={shard!r}")
    state = _Search(model, data, settings, seed, shard is not None)
    with ExitStack() as stack:
        stop = None
        if run is not None:
            stack.enter_context(run.held())
            stop = stack.enter_context(StopSignals())
            state.resume(run)
        while state.epoch < settings.epochs:
            for batch in state.loader.epoch(state.epoch, start=state.step):
                state.train(batch)
                if on_step is not None:
                    on_step(state.epoch + 1, state.step, state.loader.steps)
                stopped = stop is not None and stop.agreed()
                if run is not None and (stopped or (run.save_every and state.taken % run.save_every == 0)):
                    run.save(state.checkpoint())
                if stopped:
                    raise Interrupted(f"stopped in epoch {state.epoch + 1}, after step {state.step}")
            improved = state.finish_epoch()
            if run is not None:
                if improved:
                    run.save(state.best, "best")
                run.log(state.rows)  # before the checkpoint, so that the log has every epoch that the checkpoint counts
                run.save(state.checkpoint())
                if run.keep_every and state.epoch % run.keep_every == 0:
                    run.save(state.checkpoint(), f"epoch_{state.epoch}")
            if on_epoch is not None:
                row = state.rows[-1]
                on_epoch(row["epoch"], row["loss"], row["validation"])
    state.load_ticket()
    return state.rows


def check_shard(shard: str | None, settings: Search) -> None:
    """Raises ValueError for a ``shard`` that is unknown or that these settings do not allow."""
    if shard not in SHARDS:
        raise ValueError(f"shard={shard!r}: expected None or 'fsdp2'")
    if shard and settings.algorithm == "bernoulli":
        raise ValueError(f"shard={shard!r}: expected None for algorithm=bernoulli, which samples from whole scores")


class _Search:
    """State of a running search."""

    def __init__(self, model: nn.Module, data: Dataset, settings: Search, seed: int, sharded: bool) -> None:
        self.model, self.settings, self.seed = model, settings, seed
        self.device = next(model.parameters()).device
        self.data = data.to(self.device)
        shared = {"rank": processes.rank(), "ranks": processes.world(), "workers": settings.workers}
        shared |= {"seed": seed, "repeats": settings.repeats}
        self.loader = Loader(self.data.train, settings.batch_size, training=True, **shared)

        if settings.algorithm == "edge_popup":
            for layer in supermask_layers(model):
                _reset_scores(layer, settings.scores)
        self.masks = _masks(model, settings)
        if settings.algorithm == "bernoulli":
            self.masks.start_at(settings.sparsity)
        self.average: AveragedModel | None = None
        if settings.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
            self.average_masks = _masks(self.average, settings)
            if sharded:
                processes.shard(self.average.module)
        self.parallel = model
        if sharded:
            processes.shard(model)
        else:
            self.parallel = processes.parallel(model)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.trained, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "fp16")

        self.epoch = self.step = self.taken = 0  # current epoch, steps in it, steps in total
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)  # summed over the epoch's steps
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None

    def train(self, batch: Batch) -> None:
        """One step on this process's share of a batch."""
        settings = self.settings
        batch = batch.to(self.device)
        random = np.random.default_rng((self.seed, self.taken, processes.rank()))
        # For random numbers inside the network, such as dropout. Without a GPU, torch.manual_seed would make a stack
        # trace in each step.
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(int(random.integers(2**63)))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.epoch)

        self.model.train()
        with torch.autocast(self.device.type, _DTYPES[settings.amp], enabled=settings.amp is not None):
            if settings.mixup or settings.cutmix:
                images, kept = mixed(*batch.inputs, settings, np.random.default_rng((self.seed, self.taken)))
                logits = self.parallel(images)
                loss = kept * self._loss(logits, batch.targets) + (1 - kept) * self._loss(logits, batch.targets.flip(0))
            else:
                loss = self._loss(self.parallel(*batch.inputs), batch.targets)
        loss = loss * batch.share  # so that the sum over processes is the mean over the batch

        self.optimizer.zero_grad()
        self.scaler.scale(loss * processes.world()).backward()  # DDP averages gradients
        if settings.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.masks is not None:
            self.masks.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.loss += loss.detach()
        self.step += 1
        self.taken += 1

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.settings.label_smoothing
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), ignore_index=UNANSWERED, label_smoothing=smoothing
        )

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def finish_epoch(self) -> bool:
        """Validates and starts the next epoch. Returns whether this epoch is the best so far."""
        processes.check_same(self.model)
        loss = self._finite_loss()
        if self.average is not None:
            if isinstance(self.average_masks, BernoulliMasks):
                self.average_masks.draws = self.masks.draws
            if self.average_masks is not None:
                self.average_masks.step()
        settings = self.settings
        validation = accuracy(self.evaluated, self.data.validation, settings.batch_size, settings.workers)
        row = {
            "epoch": self.epoch + 1,
            "step": self.taken,
            "lr": settings.rate(self.epoch),
            "loss": loss / self.loader.steps,
            "validation": validation,
            "kept": _kept(self.evaluated),
        }
        if settings.test_each_epoch:
            row["test"] = accuracy(self.evaluated, self.data.test, settings.batch_size, settings.workers)
        self.rows.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss.zero_()
        improved = self.best is None or validation > self.best["validation"]
        if improved:
            state = {name: _copied(t) for name, t in self.evaluated.state_dict().items()}
            self.best = {"epoch": row["epoch"], "validation": validation, "model": state}
        return improved

    def _finite_loss(self) -> float:
        """The loss summed over processes and the epoch's steps; RuntimeError if it or a score is not finite."""
        wrong = not all(local(p).isfinite().all() for p in self.trained)
        loss, wrong = processes.total(self.loss.item(), wrong)
        finite = math.isfinite(loss)
        if not finite or wrong:
            what = "the loss" if not finite else "a weight" if self.masks is None else "a score"
            raise RuntimeError(
                f"diverged in epoch {self.epoch + 1}: {what} is not finite; expected a "
                f"lower learning rate than lr={self.settings.lr}, or clip"
            )
        return loss

    def load_ticket(self) -> None:
        """Loads the picked ticket into the model."""
        if self.settings.pick == "best":
            self.model.load_state_dict(self.best["model"])
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if isinstance(self.masks, BernoulliMasks):
            self.masks.remove()

    def checkpoint(self) -> dict[str, Any]:
        """The complete state, for `resume`."""
        loss = self._finite_loss()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "draws": getattr(self.masks, "draws", None),
            "progress": {"epoch": self.epoch, "step": self.step, "taken": self.taken, "loss": loss},
            "rows": self.rows,
        }

    def resume(self, run: Run) -> None:
        """Continues from the run's checkpoint, if there is one."""
        checkpoint = run.load("last", self.device)
        if checkpoint is None:
            return
        best = run.load("best", self.device)
        if best is None and checkpoint.get("rows"):
            raise ValueError(f"folder={run.folder}: has last.pt without best.pt; expected both or neither")
        try:
            rates = [self.settings.rate(i) for i in range(self.settings.epochs)]
            here, evaluated = self.checkpoint(), self.evaluated.state_dict()
            tested = self.settings.test_each_epoch
            with processes.raised_together():
                check(checkpoint, best, here, evaluated, self.optimizer, rates, self.loader.steps, tested)
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.scaler.load_state_dict(checkpoint["scaler"])
            if self.average is not None:
                self.average.load_state_dict(checkpoint["average"])
        except (ValueError, RuntimeError) as error:  # RuntimeError: missing or unexpected keys
            raise ValueError(f"{run.folder}: its checkpoints do not fit this search ({error})") from None
        if isinstance(self.masks, BernoulliMasks):
            self.masks.draws = checkpoint["draws"]
        progress = checkpoint["progress"]
        self.epoch, self.step, self.taken = (progress[name] for name in ("epoch", "step", "taken"))
        self.loss.fill_(progress["loss"] if processes.rank() == 0 else 0)
        self.rows, self.best = checkpoint["rows"], best
        processes.check_same(self.model)


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor, this process's part on its device."""
    return tensor.detach().clone() if is_dtensor(tensor) else tensor.detach().to("cpu", copy=True)


def _masks(model: nn.Module, settings: Search) -> EdgePopup | BernoulliMasks | None:
    """What makes the masks; None for a dense network."""
    if settings.algorithm == "dense":
        return None
    if settings.algorithm == "bernoulli":
        return BernoulliMasks(model)
    return EdgePopup(model, settings.sparsity, settings.scope)


def _optimizer(trained: list[nn.Parameter], settings: Search) -> torch.optim.Optimizer:
    if settings.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        return kind(trained, settings.lr, weight_decay=settings.weight_decay)
    momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
    return torch.optim.SGD(trained, settings.lr, weight_decay=settings.weight_decay, **momentum)


@torch.no_grad()
def _reset_scores(layer: SupermaskLayer, how: str) -> None:
    """Initial scores: those of the layer; or, for "trunc_normal", with the standard deviation 0.02 in every layer.

    The paper's code cuts that distribution off at 2, a hundred standard deviations, which changes nothing.
    """
    layer.reset_scores("normal" if how == "trunc_normal" else how)
    if how == "trunc_normal":
        layer.scores.mul_(0.02 * math.sqrt(layer.whole.fan) / layer.score_gain)


def mixed(images: Tensor, settings: Search, random: np.random.Generator) -> tuple[Tensor, float]:
    """Images mixed with those of the batch in reverse order, and the weight of their own targets.

    Mixup (Zhang et al., 2018) is a weighted mean. Cutmix (Yun et al., 2019) pastes a rectangle, at a uniform centre and
    cut off at the borders. The weights have a Beta distribution.

    Args:
        images: ``[B, C, H, W]``.
        settings: ``mixup`` and ``cutmix``, at least one of them above 0; and ``switch``, which chooses if both are.
        random: for the choice, the weight and the centre.
    """
    cut = settings.cutmix > 0 and (not settings.mixup or random.random() < settings.switch)
    if not cut:
        kept = random.beta(settings.mixup, settings.mixup)
        return images.lerp(images.flip(0), 1 - kept), kept
    kept = random.beta(settings.cutmix, settings.cutmix)
    sides = []
    for size in images.shape[2:]:
        half, centre = int(size * math.sqrt(1 - kept)) // 2, int(random.integers(size))
        sides.append(slice(max(0, centre - half), min(size, centre + half)))
    rows, columns = sides
    result = images.clone()
    result[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return result, 1 - pasted / (images.shape[2] * images.shape[3])


def _kept(model: nn.Module) -> float:
    """The fraction of all weights that the masks keep; 1 for a dense network."""
    if not any(isinstance(m, SupermaskLayer) for m in model.modules()):
        return 1.0
    layers = supermask_layers(model)
    kept = sum(int(bits.popcount(m.mask_words)) + (m.locked if m.compact else 0) for m in layers)
    return kept / sum(m.total for m in layers)


def accuracy(model: nn.Module, part: Part, batch_size: int = 256, workers: int = 0) -> float:
    """Accuracy of the model on a part, ignored targets left out. Sets the model to evaluation mode.

    Several processes divide the examples; all return the same accuracy.

    Args:
        batch_size, workers: arguments of the `Loader`.

    Raises:
        ValueError: all targets are ignored.
    """
    return evaluate(model, part, batch_size, workers)[0]


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, batch_size: int = 256, workers: int = 0) -> tuple[float, float]:
    """The `accuracy`, and the mean cross-entropy of a target in bits."""
    model.eval()
    device = next(chain(model.parameters(), model.buffers())).device
    correct = labelled = 0
    nats = 0.0
    loader = Loader(part, batch_size, rank=processes.rank(), ranks=processes.world(), workers=workers)
    for batch in loader.epoch():
        batch = batch.to(device)
        logits = model(*batch.inputs)
        correct += int((logits.argmax(-1) == batch.targets).sum())
        labelled += int((batch.targets != UNANSWERED).sum())
        flat = logits.float().flatten(0, -2), batch.targets.flatten()
        nats += float(F.cross_entropy(*flat, ignore_index=UNANSWERED, reduction="sum"))
    if processes.is_sharded(model) and loader.steps < -(-len(part) // batch_size):
        inputs, _ = part.batch(torch.tensor([0]))  # the other processes have one more batch, and gather scores for it
        model(*(x.to(device) for x in inputs))
    correct, labelled, nats = processes.total(correct, labelled, nats)
    if not labelled:
        raise ValueError(f"targets: all of the {len(part)} examples are ignored ({UNANSWERED}), expected at least one")
    return correct / labelled, nats / labelled / math.log(2)
