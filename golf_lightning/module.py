"""The LightningModule: it joins model, optimizer and metric, and holds no mathematics of its own."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from golf_lightning.compression.export import ExportConfig
from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.data.datamodule import GolfDataModule
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.bpb import BitsPerByte, Score
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.kernels.attention import AttentionBackend, choose_backend
from golf_lightning.kernels.backend import KernelBackend, choose_kernels, cute_lacks
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.agreement import assert_same_on_all_ranks
from golf_lightning.optim.clock import TrainingClock
from golf_lightning.optim.config import OptimizerConfig
from golf_lightning.optim.muon import MuonAdamW
from golf_lightning.optim.schedules import scheduled
from golf_lightning.optim.warmup import compile_in_place
from golf_lightning.reporting.ledger import Ledger
from golf_lightning.reporting.result import Result
from golf_lightning.stages import score_with_ttt

ComputeDtype = Literal["auto", "float32", "bfloat16"]


class GolfModule(pl.LightningModule):
    """Trains a banked GPT and scores it in bits per byte.

    Schedules follow :attr:`fraction`, the part of the training that has passed: of the clock, where a callback has
    given the module one, else of the Trainer's ``max_steps``.

    Args:
        gpt: shape of the model.
        optimizer: learning rates, momentum, clipping and schedules.
        export: quantization, coder and byte budget of the artifact.
        ttt: test-time training, which ``test`` scores with.
        ttt_baseline: also score the test-time path with learning rate 0, which tells the gain of adaptation from that
            of the sliding window; costs about a third more time.
        compute_dtype: dtype of activations and of weights at use; auto is bfloat16 on a GPU and float32 on a CPU.
        attention: attention backend; auto takes the fastest that works on the device.
        kernels: implementation of the fused operations; auto takes Triton on a GPU of compute capability 9 or 10 and
            plain PyTorch elsewhere, and quack-kernels for the MLP's products where they run; triton is Triton alone.
        compile: compile the model with torch.compile; auto does so on a GPU.

    Attributes:
        clock: the training clock, or ``None`` when steps drive the schedules.
        backends: which implementation computes what, in words, as settled for the device.
        is_artifact: whether the weights are those of an artifact, quantized.
        step_start_s: second of the clock at which this rank began the step under way; rank 0's is what ranks agree on.
        lag_s: how much older the agreed second is than the step about to begin, as the clock estimates it on all ranks.
        signal: number of a signal that this rank has received and that all ranks are to learn with the next step.
        ledger: seconds by stage.
        result: what the run has to tell; written to the run folder.
    """

    def __init__(
        self,
        gpt: GPTConfig,
        optimizer: OptimizerConfig,
        export: ExportConfig,
        ttt: TTTConfig,
        ttt_baseline: bool = True,
        compute_dtype: ComputeDtype = "auto",
        attention: AttentionBackend = "auto",
        kernels: KernelBackend = "auto",
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.export_config = export
        self.ttt_config = ttt
        self.ttt_baseline = ttt_baseline
        self.compute_dtype = compute_dtype
        self.compile_mode = compile
        self.model = GPT(gpt, attention=attention, kernels=kernels)
        self.is_artifact = False
        self.metric: BitsPerByte | None = None
        self.clock: TrainingClock | None = None
        self.backends: dict[str, str] = {}
        self.step_start_s = 0.0
        self.lag_s = 0.0
        self.signal = 0
        self.ledger = Ledger()
        self.result = Result()

    @override
    def setup(self, stage: str) -> None:
        data = self.datamodule
        if data.tokenizer.vocab_size != self.model.config.vocab_size:
            raise GolfError(
                f"The tokenizer of {data.folder} has {data.tokenizer.vocab_size} pieces but the model's vocab_size is "
                f"{self.model.config.vocab_size}; set --model.gpt.vocab_size {data.tokenizer.vocab_size}."
            )
        if self.trainer.world_size > 1:
            # Ranks that differ would otherwise hang in a collective, or train on in silence.
            assert_same_on_all_ranks(f"{self.settings} {data.settings}", "The model's or the data's configuration")
        self.metric = BitsPerByte(data.byte_table)
        self.settle(self.trainer.strategy.root_device)

    def settle(self, device: torch.device) -> None:
        """Choose the compute dtype for a device, check that the backends work there, and compile if asked to.

        Beside a GPU, torch computes with one thread on the CPU from then on, in the whole process.

        Raises:
            GolfError: a backend cannot work on the device.
        """
        on_gpu = device.type == "cuda"
        if on_gpu:
            # Batches are made on the CPU beside the GPU's work. More threads make them no faster, and wait for each
            # other wherever another program uses a core: 30 ms a batch instead of 0.3.
            torch.set_num_threads(1)
        dtype = ("bfloat16" if on_gpu else "float32") if self.compute_dtype == "auto" else self.compute_dtype
        self.model.compute_dtype = getattr(torch, dtype)
        # Backends that cannot work here are refused before anything starts.
        where = self.model.kernels, device, self.model.compute_dtype
        self.backends = {"attention": choose_backend(self.model.attention, device), "kernels": choose_kernels(*where)}
        if self.backends["kernels"] == "triton":
            lacks = cute_lacks(*where)
            products = "quack-kernels" if lacks is None else f"triton; quack-kernels' would need {lacks}"
            self.backends["MLP products"] = products
        if self.compile_mode is True or (self.compile_mode == "auto" and on_gpu):
            compile_in_place(self.model)

    @property
    def settings(self) -> str:
        """All settings as text, equal for equal modules."""
        parts = (self.model.config, self.optimizer_config, self.export_config, self.ttt_config, self.compute_dtype)
        return " ".join(repr(part) for part in parts)

    @property
    def datamodule(self) -> GolfDataModule:
        """The data of the running trainer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, GolfDataModule):
            raise GolfError("GolfModule needs a GolfDataModule; pass one to the Trainer's method as datamodule.")
        return data

    @property
    def optimizer(self) -> MuonAdamW:
        """The optimizer itself, without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, MuonAdamW)
        return optimizer

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return MuonAdamW(self.model.named_parameters(), self.optimizer_config)

    @property
    def fraction(self) -> float:
        """Part of the training that has passed, in [0, 1]; the same on every rank and throughout a step."""
        if self.clock is not None:
            return self.clock.fraction(self.optimizer.exchange.agreed().elapsed_s + self.lag_s)
        steps = self.trainer.max_steps
        return min(1.0, self.global_step / steps) if steps and steps > 0 else 0.0

    @override
    def on_train_start(self) -> None:
        self.optimizer.exchange.reset(self.step_start_s)

    @override
    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        nll_T = self.model(batch.tokens, batch.targets, batch.cu_seqlens)
        return nll_T.sum() / (batch.targets != IGNORED).sum()

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        now = scheduled(self.optimizer_config, self.global_step, self.fraction)
        self.optimizer.set_schedule(now.lr_scale, now.momentum)
        self.optimizer.exchange.send(self.step_start_s, self.signal)

    @override
    def on_validation_epoch_start(self) -> None:
        assert self.metric is not None
        self.metric.reset()

    @override
    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        assert self.metric is not None
        with self.scoring():
            nll_T = self.model(batch.tokens, batch.targets, batch.cu_seqlens)
        self.metric.update(nll_T, batch.tokens, batch.targets)

    @override
    def on_validation_epoch_end(self) -> None:
        score = self.score()
        values = {"val/bpb": score.bpb, "val/nats_per_target": score.nats_per_target}
        self.log_dict(values, sync_dist=True)  # alike on every rank; the flag only spares the user a warning

    @override
    def test_step(self, batch: DocumentStream, batch_idx: int) -> None:
        score_with_ttt(self, batch)

    def scoring(self) -> torch.set_grad_enabled:
        """The context to score packed batches in.

        In ``fit``, where batches have the shapes of training, gradients are on: what was compiled for training then
        serves, and a third graph need not be made before the clock starts.
        """
        data = self.datamodule
        return torch.set_grad_enabled(self.trainer.state.fn == "fit" and data.val_packing == data.train_packing)

    def score(self) -> Score:
        """The sums of the last validation over all ranks; every rank calls it."""
        assert self.metric is not None
        return self.metric.score()

    def record_score(self, name: str, score: Score, **more: Any) -> None:
        """Put a score of the validation split into :attr:`result`."""
        data = self.datamodule
        text_bytes = data.manifest.splits["val"].source_bytes
        self.result.record_score(name, score, split_targets=data.val_targets, split_text_bytes=text_bytes, **more)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["golf"] = {
            "gpt": self.model.config.to_dict(),
            "recurrent": self.model.recurrent,
            "tokenizer_sha256": self.datamodule.tokenizer.sha256,
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        golf = checkpoint.get("golf")
        if golf is None:
            raise GolfError("The checkpoint was not written by golf_lightning; give one from runs/NAME/checkpoints.")
        own = self.model.config.to_dict()
        if different := [f"{key} {golf['gpt'].get(key)}" for key in own if golf["gpt"].get(key) != own[key]]:
            raise GolfError(
                f"The checkpoint holds a model with {', '.join(different)}, which is not this configuration's; "
                "pass the config.yaml of its run."
            )
        if golf["tokenizer_sha256"] != self.datamodule.tokenizer.sha256:
            raise GolfError(
                f"The model was trained with another tokenizer than that of {self.datamodule.folder}; "
                "give --data.folder a folder prepared with the same tokenizer."
            )
        self.is_artifact = golf.get("artifact", False)
        if self.is_artifact and self.trainer.training:
            raise GolfError("An artifact holds no optimizer state to continue from; give fit a checkpoint instead.")
        self.model.recurrent = golf["recurrent"]
