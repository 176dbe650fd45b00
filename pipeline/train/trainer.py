"""TRL's SFTTrainer with the teacher's stored distributions in its loss.

Axes: B batch, T tokens of a padded row, N loss positions, K stored support, H hidden.
"""

import functools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl.models.utils import _ForwardRedirection
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from pipeline.config import Train
from pipeline.console import progress
from pipeline.rundir import write_text
from pipeline.train.batches import ITEM_COLUMNS, LengthGrouped, collate_items, items, sampler
from pipeline.train.divergences import forward_kl_nats
from pipeline.train.head import support_logprobs
from pipeline.train.packing import use_packed_attention
from pipeline.train.rows import Answers
from pipeline.train.targets import IGNORED


def token_losses(model: Any, inputs: dict[str, Tensor], chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """`(ce_N, kl_N)`, nats: cross-entropy on each label, and KL(teacher ‖ student) over support and tail.

    The hidden state at position t − 1 predicts label t; both are taken where label t is not ignored.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    given = {k: v for k, v in inputs.items() if k != "labels" and not k.startswith("teacher_")}
    outputs = decoder(**given, use_cache=False)
    labels_BT = inputs["labels"][:, 1:]
    is_loss_BT = labels_BT != IGNORED
    hidden_NH = outputs.last_hidden_state[:, :-1][is_loss_BT]
    student = support_logprobs(hidden_NH, head.weight, inputs["teacher_ids_NK"], labels_BT[is_loss_BT], chunk_tokens)
    kl_N = forward_kl_nats(
        inputs["teacher_logprobs_NK"], inputs["teacher_log_tail_N"], student.support_NK, student.log_tail_N
    )
    return -student.label_N, kl_N


class DistillationTrainer(SFTTrainer):
    """loss = Σ over the optimizer step's answer tokens of (ce_weight·CE + kd_weight·KL), divided by their number."""

    def __init__(self, settings: Train, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings = settings
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the optimizer step's tokens for our loss
        self._forward_redirection = _ForwardRedirection()
        self._sums: dict[str, float] = {"ce_nats": 0.0, "kl_nats": 0.0, "tokens": 0, "all_tokens": 0}
        self._since = time.monotonic()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("the distillation loss never forms logits, so has no outputs to return")
        unwrapped = self.accelerator.unwrap_model(model)
        # Through the wrapper's forward, so that DDP and FSDP see it; that goes round accelerate's own autocast.
        with self.accelerator.autocast():
            ce_N, kl_N = self._forward_redirection(
                model, unwrapped, token_losses, unwrapped, inputs, self._settings.head_chunk_tokens
            )
        self._count(ce_N, kl_N, inputs.get("attention_mask", torch.ones_like(inputs["labels"])))
        loss_N = self._settings.ce_weight * ce_N + self._settings.kd_weight * kl_N
        num_tokens = len(ce_N) if num_items_in_batch is None else num_items_in_batch
        loss = loss_N.sum() / num_tokens
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages; num_items_in_batch counts every process
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._sums["tokens"] and "loss" in logs:
            elapsed_s = time.monotonic() - self._since
            logs |= {name: self._sums[name] / self._sums["tokens"] for name in ("ce_nats", "kl_nats")}
            logs["tokens_per_s"] = self._sums["all_tokens"] / elapsed_s
            self._sums = dict.fromkeys(self._sums, 0)
            self._since = time.monotonic()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return sampler(rows, self._settings)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ITEM_COLUMNS

    def _count(self, ce_N: Tensor, kl_N: Tensor, attention_BT: Tensor) -> None:
        self._sums["ce_nats"] += ce_N.detach().sum().item()
        self._sums["kl_nats"] += kl_N.detach().sum().item()
        self._sums["tokens"] += len(ce_N)
        self._sums["all_tokens"] += int(attention_BT.sum())


class Progress(TrainerCallback):
    """The live line, and train/metrics.jsonl: one JSON object per logged step."""

    KEYS = ("loss", "kl_nats", "ce_nats", "grad_norm", "learning_rate", "tokens_per_s", "epoch")

    def __init__(self, arm: str, path: Path) -> None:
        self._arm, self._path = arm, path
        self._bar = progress("steps")
        self._task = self._bar.add_task(f"train {arm}", note="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget_after(state.global_step)
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        row = {"arm": self._arm, "step": state.global_step, **{key: logs.get(key) for key in self.KEYS}}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        self._bar.update(self._task, note=f"KL {logs['kl_nats']:.3f}  {logs['tokens_per_s']:.0f} tokens/s")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.stop()

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run will do again, and a last line that a kill cut short."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["arm"] != self._arm or row["step"] <= step:
                kept.append(line)
        write_text(self._path, "".join(f"{line}\n" for line in kept))


def fit(
    settings: Train, arm: str, model: Any, tokenizer: Any, rows: Answers, folder: Path, checkpoints: Path
) -> dict[str, Any]:
    """Train `model` in place, from its last whole checkpoint where there is one. Returns counts of the training."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard" / arm)
    lora = settings.lora
    if settings.pack_tokens is not None:
        use_packed_attention(model, settings.dtype)
    trainer = DistillationTrainer(
        settings,
        model=model,
        args=_arguments(settings, checkpoints),
        train_dataset=items(rows, settings),
        processing_class=tokenizer,
        data_collator=functools.partial(
            collate_items,
            answers=rows,
            pad_token_id=tokenizer.pad_token_id or 0,
            vocab_size=model.get_output_embeddings().weight.shape[0],
            settings=settings,
        ),
        callbacks=[Progress(arm, folder / "metrics.jsonl")],
        peft_config=None
        if lora is None
        else LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)  # Progress shows the same, on one line
    resumed = last_whole_checkpoint(checkpoints)
    result = trainer.train(resume_from_checkpoint=resumed)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "model": trained.merge_and_unload() if lora is not None else trained,
        "steps": trainer.state.global_step,
        "train_loss": result.training_loss,
        "resumed_from": Path(resumed).name if resumed else None,
        "train_s": round(result.metrics["train_runtime"], 1),
    }


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; later halves, left by a kill, are deleted."""
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))) is not None:
        try:
            # trainer_state.json is the last file of a checkpoint
            json.loads((Path(newest) / "trainer_state.json").read_text(encoding="utf-8"))
            return newest
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(newest)
    return None


def _arguments(settings: Train, checkpoints: Path) -> SFTConfig:
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_frac,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation_steps,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        logging_steps=settings.log_steps,
        logging_first_step=True,
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        max_length=None,  # rows.kept_answers leaves long rows out; nothing is cut
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would scatter tokens and soft targets differently
    return arguments
