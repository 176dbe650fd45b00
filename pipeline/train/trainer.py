"""TRL's SFTTrainer with the teacher's distributions in its loss.

Axes: N loss positions, K stored support.
"""

import functools
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl.models.utils import _ForwardRedirection
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from pipeline.config import Train
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.models.adapters import lora_config
from pipeline.models.forward import packed_attention
from pipeline.run import artifacts
from pipeline.run.files import json_lines, write_text
from pipeline.train.batches import ITEM_COLUMNS, LengthGrouped, collate_items, items, sampler
from pipeline.train.examples import TrainingExamples
from pipeline.train.losses import Validation, token_losses, validation_measures
from pipeline.train.targets import IGNORED

AS_STORED = {"positions_frac": 1.0, "tail": "bucket"}  # validation is against the teacher, whatever is trained on
MAX_SKIPPED = 3  # steps in a row without a finite gradient, after which training stops
FEW_STEPS = 5  # with fewer, the schedule of the learning rate leaves the weights about where they were
CURVES = ("ce_nats", "kl_nats", "divergence")
VALIDATION = tuple(f"eval_{name.removesuffix('_N')}" for name in Validation._fields)


class DistillationTrainer(SFTTrainer):
    """loss = Σ over the optimizer step's answer tokens of (ce_weight·CE + kd_weight·divergence), over their number."""

    def __init__(self, settings: Train, teacher: Any = None, validation_collator: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings, self._teacher, self._validation_collator = settings, teacher, validation_collator
        self.add_callback(EpochCallback(self))
        if teacher is not None:
            teacher.to(self.accelerator.device).requires_grad_(False).eval()
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the optimizer step's tokens for our loss
        self._forward_redirection = _ForwardRedirection()
        self._skipped = 0
        self._forget_curves()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs:
            raise ValueError("the distillation loss never forms logits, so has no outputs to return")
        num_labels = (inputs["labels"] != IGNORED).sum()
        losses = self._through_wrapper(model, token_losses, inputs, self._settings, self._teacher)
        self._add_to_curves(losses, inputs)
        ce_weight, kd_weight = weights_at(self._settings, self.state.global_step, self.state.max_steps)
        loss_N = ce_weight * losses.ce_N + kd_weight * losses.divergence_N
        # the mean over the positions that were chosen stands for the mean over all of this batch
        share = num_labels / (num_labels if num_items_in_batch is None else num_items_in_batch)
        loss = loss_N.mean() * share
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages; num_items_in_batch counts every process
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            *sums, num, num_tokens = self._over_processes(self._sums)
            logs |= {name: value / max(num, 1) for name, value in zip(CURVES, sums, strict=True)}
            logs["tokens_per_s"] = num_tokens / (time.monotonic() - self._since)
            self._forget_curves()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measures on the validation rows, as `eval_kl_nats` and so on: means over their answer tokens."""
        kept_back: Any = self.eval_dataset
        began, rows = time.monotonic(), list(kept_back)
        world, size = self.accelerator.num_processes, self._settings.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        sums = torch.zeros(len(VALIDATION) + 1, dtype=torch.float64, device=self.accelerator.device)
        model: Any = self.model
        model.eval()
        for start in range(0, len(batches), world):
            # every process takes part in every forward pass, the last ones with a batch that counts for nothing
            place = start + self.accelerator.process_index
            inputs = self._prepare_inputs(self._validation_collator(batches[min(place, len(batches) - 1)]))
            with torch.no_grad():
                values = self._through_wrapper(self.model_wrapped, validation_measures, inputs, self._settings)
            counted = torch.stack([*values, torch.ones_like(values.kl_nats_N)]).double().sum(dim=1)
            sums += counted * (place < len(batches))
        model.train()
        *totals, num = self._over_processes(sums)
        self._since += time.monotonic() - began  # no part of tokens_per_s
        metrics = {name: total / num for name, total in zip(VALIDATION, totals, strict=True)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _over_processes(self, sums: Tensor) -> list[float]:
        gathered: Any = self.accelerator.gather(sums[None])
        return gathered.sum(dim=0).tolist()

    def _through_wrapper(self, model: Any, function: Any, *arguments: Any) -> Any:
        """`function(bare model, *arguments)` through the wrapper's forward, so that DDP and FSDP see it."""
        bare = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():  # which goes round accelerate's own
            return self._forward_redirection(model, bare, function, bare, *arguments)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's, before the optimizer's step: where it is not finite, this step leaves the weights alone."""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and math.isfinite(norm):
            self._skipped = 0
            return norm
        self._skipped += 1
        step = self.state.global_step + 1
        if self._skipped == MAX_SKIPPED:
            raise UserError(
                f"train: no finite gradient in {MAX_SKIPPED} steps in a row, up to step {step}. The last checkpoint is"
                f" from before: copy it out of {self.args.output_dir} to keep it, then train again with --fresh and a"
                f" lower train.learning_rate (now {self._settings.learning_rate:g}) or train.max_grad_norm"
            )
        say(f"train: the gradient of step {step} is not finite ({norm}); the step is left out")
        model.zero_grad(set_to_none=True)  # the optimizer passes over parameters without a gradient
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        self._sampler = sampler(dataset, self._settings)
        return self._sampler

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ITEM_COLUMNS

    def _add_to_curves(self, losses: Any, inputs: dict[str, Tensor]) -> None:
        means = [values_N.detach().double().sum() for values_N in losses]
        num_tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        counts = torch.as_tensor([len(losses.kl_N), num_tokens], dtype=torch.float64)
        self._sums += torch.cat([torch.stack(means), counts.to(self._sums.device)])

    def _forget_curves(self) -> None:
        self._sums = torch.zeros(len(CURVES) + 2, dtype=torch.float64, device=self.accelerator.device)
        self._since = time.monotonic()


def weights_at(settings: Train, step: int, max_steps: int) -> tuple[float, float]:
    """`(ce_weight, kd_weight)` of a step, counted from 0: on straight lines to their values at the last."""
    way = step / max(1, max_steps - 1)
    pairs = ((settings.ce_weight, settings.ce_weight_end), (settings.kd_weight, settings.kd_weight_end))
    first, second = (start if end is None else start + way * (end - start) for start, end in pairs)
    return first, second


class EpochCallback(TrainerCallback):
    """Tells the sampler its epoch: where processes share the batches out, neither Trainer nor accelerate reaches it."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class Progress(TrainerCallback):
    """The live line, and train/metrics.jsonl: one JSON object per logged step."""

    KEYS = ("loss", *CURVES, "grad_norm", "learning_rate", "tokens_per_s", "epoch")

    def __init__(self, arm: str, path: Path) -> None:
        self._arm, self._path, self._note, self._validated = arm, path, "", ""
        self._bar = progress("steps")
        self._task = self._bar.add_task(f"train {arm}", note="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._forget_after(state.global_step)
            if state.max_steps < FEW_STEPS:
                say(
                    f"train {self._arm}: {state.max_steps} steps in all, while the learning rate rises from 0 and falls"
                    " to 0 again: hardly a weight moves; train on more answers, more epochs or smaller batches"
                )
            self._bar.start()
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)

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
        keys = [key for key in (*self.KEYS, *VALIDATION) if key in (logs or {})]
        if not logs or not state.is_world_process_zero or not {"loss", *VALIDATION} & set(keys):
            return
        numbers = {key: logs[key] if math.isfinite(logs[key]) else None for key in keys}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"arm": self._arm, "step": state.global_step, **numbers}) + "\n")
        if "loss" in keys:
            self._note = f"KL {logs['kl_nats']:.3f}  {logs['tokens_per_s']:.0f} tokens/s"
        else:
            self._validated = f"  validation KL {logs['eval_kl_nats']:.3f}"
        self._bar.update(self._task, note=self._note + self._validated)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.stop()

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run will do again, and a last line that a kill cut short."""
        if not self._path.exists():
            return
        kept = []
        for line in json_lines(self._path):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["arm"] != self._arm or row["step"] <= step:
                kept.append(line.decode())
        write_text(self._path, "".join(f"{line}\n" for line in kept))


def fit(
    settings: Train,
    arm: str,
    model: Any,
    tokenizer: Any,
    answers: TrainingExamples,
    validation: TrainingExamples,
    folder: Path,
    checkpoints: Path,
    teacher: Any = None,
) -> dict[str, Any]:
    """Train `model` in place, from its last whole checkpoint where there is one; `teacher`: for targets=live.

    Returns counts of the training, the trained `model`, and its `state_dict` where it is spread over processes.
    Raises UserError where gradients stop being finite.
    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard" / arm)
    arguments = _arguments(settings, checkpoints, bool(len(validation)))
    trainer = distillation_trainer(settings, model, tokenizer, answers, validation, arguments, teacher)
    if trainer.is_fsdp_enabled and settings.lora is not None:
        raise UserError("train.lora: adapters under FSDP are not supported; train them with DDP, or without train.lora")
    trainer.add_callback(Progress(arm, folder / artifacts.TRAIN_METRICS))
    trainer.remove_callback(PrinterCallback)  # Progress shows the same, on one line
    resumed = last_whole_checkpoint(checkpoints)
    result = trainer.train(resume_from_checkpoint=resumed)
    best = trainer.state.best_model_checkpoint
    return {
        **_trained(trainer),
        "steps": trainer.state.global_step,
        "resumed_from": Path(resumed).name if resumed else None,
        "best_step": int(Path(best).name.rpartition("-")[2]) if best else None,
        "best_validation_kl_nats": trainer.state.best_metric,
        "train_s": round(result.metrics["train_runtime"], 1),
    }


def distillation_trainer(
    settings: Train,
    model: Any,
    tokenizer: Any,
    answers: TrainingExamples,
    validation: TrainingExamples,
    arguments: SFTConfig,
    teacher: Any = None,
) -> DistillationTrainer:
    """The trainer of `model` on these answers, of which it knows only the numbers: collators read the rows."""
    if settings.pack_tokens is not None:
        packed_attention.use(model, settings.dtype)
        if teacher is not None:
            packed_attention.use(teacher, settings.dtype)
    collator = functools.partial(
        collate_items,
        pad_token_id=tokenizer.pad_token_id or 0,
        vocab_size=len(model.get_output_embeddings().weight),
        settings=settings,
    )
    return DistillationTrainer(
        settings,
        teacher,
        functools.partial(collator, answers=validation, settings=settings.model_copy(update=AS_STORED)),
        model=model,
        args=arguments,
        train_dataset=items(answers, settings),
        eval_dataset=items(validation, settings) if len(validation) else None,
        processing_class=tokenizer,
        data_collator=functools.partial(collator, answers=answers),
        peft_config=None if settings.lora is None else lora_config(settings.lora),
    )


def _trained(trainer: DistillationTrainer) -> dict[str, Any]:
    """The bare model, adapters merged into it unless it is quantised; its weights where no process has all of them."""
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel) and not getattr(model.get_base_model(), "is_quantized", False):
        model = model.merge_and_unload()
    return {"model": model, "state_dict": state}


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; later halves, left by a kill, are deleted."""
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))) is not None:
        try:
            # trainer_state.json is the last file of a checkpoint
            json.loads((Path(newest) / "trainer_state.json").read_text(encoding="utf-8"))
            return newest
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(newest, ignore_errors=True)  # another process may be deleting it too
            if Path(newest).exists():
                raise UserError(f"{newest}: half written, and can't be deleted; delete it by hand") from None
    return None


def _arguments(settings: Train, checkpoints: Path, validates: bool) -> SFTConfig:
    keeps_best = validates and settings.keep == "best"
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
        eval_strategy="steps" if validates else "no",
        eval_steps=settings.checkpoint_steps,
        load_best_model_at_end=keeps_best,
        metric_for_best_model=VALIDATION[0] if keeps_best else None,
        greater_is_better=False if keeps_best else None,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        max_length=None,  # batches.kept_rows leaves long rows out; nothing is cut
        packing=False,
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would scatter tokens and soft targets differently
    return arguments
